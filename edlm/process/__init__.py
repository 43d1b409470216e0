"""The masking process without a network: keyed noise, laws over tokens, schedules, reveal plans, weighted particles."""
