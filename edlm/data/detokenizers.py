"""Detokenizers: from text as data sets hold it, with punctuation apart and marks for omissions, to text as written.

The rules are those of the published zero-shot figures (Sahoo et al. 2024), applied in order. Each is a fact about its
set. One published rule is left out: it is meant for apostrophes before digits and never matches. Where two matches of
a rule share a space, both are made; the published code misses the second.
"""

import re
from collections.abc import Callable

Detokenizer = Callable[[str], str]
_Rule = tuple[str, str | Callable[[re.Match[str]], str]]


def wikitext(text: str) -> str:
    """Restore WikiText's raw text: ` @-@ ` within words and numbers, spaces around punctuation and inside brackets."""
    return _WIKITEXT(text)


def ptb(text: str) -> str:
    """Restore a sentence of the Penn Treebank: contractions apart, `N` for every number, `<unk>` for rare words."""
    return _PTB(text.strip())


def lm1b(text: str) -> str:
    """Restore a sentence of the One Billion Words: punctuation, quotations and currencies apart."""
    return _LM1B(text.strip())


def lambada(text: str) -> str:
    """Restore a passage of LAMBADA: straight quotation marks, and the line break that is put in front of it."""
    return "\n" + _LAMBADA(text).strip()


def scientific_papers(text: str) -> str:
    """Restore an article of PubMed or arXiv by the rules of WikiText, then those of the One Billion Words."""
    return _LM1B(wikitext(text))


def _tight(match: re.Match[str]) -> str:
    """Drop the spaces inside the two marks of a bracket or quotation."""
    return match[0][0] + match[0][1:-1].strip() + match[0][-1]


def _in_turn(*rules: _Rule) -> Detokenizer:
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in rules]

    def detokenize(text: str) -> str:
        for pattern, replacement in compiled:
            text = pattern.sub(replacement, text)
        return text

    return detokenize


_WIKITEXT = _in_turn(
    ("s '", "s'"),
    (" @([-,.])@ ", r"\1"),
    (" ([:;.!?,])(?= )", r"\1"),
    *((pattern, _tight) for pattern in (r"\([^)]*\)", r"\[[^\]]*\]", r"\{[^}]*\}", '"[^"]*"', "'[^']*'")),
    ("=(?: =)+", lambda match: match[0].replace(" ", "")),
    (" ° ", "°"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N(?= )", " 1"),
    (" 's", "'s"),
)
_PTB = _in_turn(
    (" 's", "'s"),
    ("s ' ", "s' "),
    (" n't", "n't"),
    (" \n ", "\n"),
    (r"\\/", "/"),
    (" N(?= )", " 1"),
    (r"([$#]) 1", r"\g<1>1"),
    ("<unk>", "?"),
)
_LM1B = _in_turn(
    ("(https?) : / / ", r"\1://"),
    (r" '(?=\w)", "'"),
    (r"(?<= )(\w+) \.(?= |$)", r"\1."),
    (r" ([?!])(?= |$)", r"\1"),
    (" ([,:;])(?= )", r"\1"),
    (" / ", "/"),
    ('" ([^"]+) "', r'"\1"'),
    ("' ([^']+) '", r"'\1'"),
    (r"\( ([^()]+) \)", r"(\1)"),
    (r"\[ ([^\[\]]+) \]", r"[\1]"),
    (r"([$£]) ", r"\1"),
)
_LAMBADA = _in_turn(("[“”]", '"'))
