"""The masking process: keyed noise, laws over tokens, schedules, what is masked when, and weighted particles."""
