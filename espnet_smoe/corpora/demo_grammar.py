"""Sentences of the demo corpus: English with its exact German translation.

One derivation makes both sides. The German is not word by word: time before object,
separable prefixes and infinitives last, verb last in clauses with "dass", "weil" and
"wenn", gender and case on articles and adjectives.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from espnet_smoe.corpora.demo_lexicon import (
    ADJECTIVES,
    BOOKABLE,
    CITIES,
    DOCUMENTS,
    PEOPLE,
    PLACES,
    SHOPS,
    THINGS,
    WEEKDAYS,
    amount,
    clock,
    german_number,
    number,
    pairs,
)
from espnet_smoe.corpora.demo_phrases import (
    Pair,
    my,
    the,
    verb_phrase,
    with_article,
)

__all__ = ["MAX_WORDS", "GrammarError", "sentence_pairs"]

MAX_WORDS = 12  # English words in a sentence
_PATIENCE = 5_000  # sentences seen before in a row: the grammar is exhausted
_TIMELESS = 0.5  # share of subordinate clauses that do not say when

_MODALS = pairs(
    "i would like to = ich möchte; i want to = ich will; i have to = ich muss;"
    "can you = können sie; could you please = könnten sie bitte;"
    "we have to = wir müssen; we can = wir können; i can = ich kann;"
    "should i = soll ich; he has to = er muss; she wants to = sie will"
)
_DIGIT_STRINGS = pairs(
    "account number = meine kontonummer; customer number = meine kundennummer;"
    "phone number = meine telefonnummer"
)
_PAST_TIMES = pairs(
    "yesterday = gestern; last week = letzte woche; this morning = heute morgen;"
    "last night = gestern abend"
)


class GrammarError(ValueError):
    """More sentences are asked for than the grammar has."""


def sentence_pairs(count: int, seed: int) -> list[Pair]:
    """Distinct sentences with their translations, the same for the same seed.

    Args:
        count: number of sentences.
        seed: of the drawing.

    Raises:
        GrammarError: the grammar has no ``count`` distinct sentences.
    """
    rng = Random(seed)
    makers, weights = zip(*_SENTENCES, strict=True)
    drawn: dict[str, str] = {}
    repeats = 0
    while len(drawn) < count:
        maker = rng.choices(makers, weights)[0]
        english, german = _short(maker, rng)
        repeats = repeats + 1 if english in drawn else 0
        if repeats > _PATIENCE:
            raise GrammarError(
                f"the demo grammar ran out after {len(drawn)} distinct sentences; "
                f"{count} were asked for"
            )
        drawn.setdefault(english, german)
    return list(drawn.items())


def _short(maker: Callable[[Random], Pair], rng: Random) -> Pair:
    """Draw until short enough, so that long kinds keep their share."""
    while True:
        pair = maker(rng)
        if len(pair[0].split()) <= MAX_WORDS:
            return _tidy(pair[0]), _tidy(pair[1])


def _tidy(text: str) -> str:
    return " ".join(text.split())


def _modal(rng: Random) -> Pair:
    (modal, verb), action = rng.choice(_MODALS), verb_phrase(rng)
    return f"{modal} {action.english}", f"{verb} {action.german}"


def _imperative(rng: Random) -> Pair:
    action = verb_phrase(rng)
    return (
        f"please {action.english}",
        f"bitte {action.finite} sie {action.middle} {action.prefix}",
    )


def _because(rng: Random) -> Pair:
    action = verb_phrase(rng, _TIMELESS)
    return (
        f"i can not come because i must {action.english}",
        f"ich kann nicht kommen weil ich {action.german} muss",
    )


def _tell(rng: Random) -> Pair:
    person, action = rng.choice(PEOPLE), verb_phrase(rng, _TIMELESS)
    return (
        f"please tell my {person.english} that i will {action.english}",
        f"bitte sagen sie {my(person, 'dative')} dass ich {action.german} werde",
    )


def _if(rng: Random) -> Pair:
    thing, (adjective, eigenschaft) = rng.choice(BOOKABLE), rng.choice(ADJECTIVES)
    action = verb_phrase(rng, _TIMELESS)
    return (
        f"if the {thing.english} is too {adjective} i will {action.english}",
        f"wenn {the(thing, 'nominative')} zu {eigenschaft} ist werde ich "
        f"{action.german}",
    )


def _next_train(rng: Random) -> Pair:
    (start, von), (city, nach) = rng.sample(CITIES, 2)
    vehicle, gefährt = rng.choice((("train", "zug"), ("bus", "bus")))
    return (
        f"when does the next {vehicle} from {start} to {city} leave",
        f"wann fährt der nächste {gefährt} von {von} nach {nach} ab",
    )


def _departure(rng: Random) -> Pair:
    (city, stadt), (time, zeit) = rng.choice(CITIES), clock(rng)
    platform = rng.randint(1, 20)
    return (
        f"the train to {city} leaves at {time} from platform {number(platform)}",
        f"der zug nach {stadt} fährt um {zeit} von gleis {german_number(platform)} ab",
    )


def _is_there(rng: Random) -> Pair:
    shop, place = rng.choice(SHOPS), rng.choice(PLACES)
    adjective, eigenschaft = rng.choice(ADJECTIVES)
    near = "von der" if place.gender == "f" else "vom"
    return (
        f"is there a {adjective} {shop.english} near the {place.english}",
        f"gibt es in der nähe {near} {place.german} {with_article(eigenschaft, shop)}",
    )


def _happened(rng: Random) -> Pair:
    thing, (city, stadt) = rng.choice(THINGS), rng.choice(CITIES)
    time, zeit = rng.choice(_PAST_TIMES)
    if rng.random() < 0.6:
        verb, partizip = rng.choice(
            (("lost", "verloren"), ("forgot", "vergessen"), ("sold", "verkauft"))
        )
        what, was = f"my {thing.english}", my(thing, "accusative")
    else:
        verb, partizip = rng.choice((("found", "gefunden"), ("bought", "gekauft")))
        what, was = f"the {thing.english}", the(thing, "accusative")
    return (
        f"i {verb} {what} in {city} {time}",
        f"ich habe {zeit} in {stadt} {was} {partizip}",
    )


def _called(rng: Random) -> Pair:
    person, (time, zeit) = rng.choice(PEOPLE), clock(rng)
    day, tag = rng.choice(WEEKDAYS)
    return (
        f"my {person.english} called me on {day} at {time}",
        f"{my(person, 'nominative')} hat mich am {tag} um {zeit} angerufen",
    )


def _digits(rng: Random) -> Pair:
    digits = [rng.randint(0, 9) for _ in range(rng.randint(3, 4))]
    what, was = rng.choice(_DIGIT_STRINGS)
    return (
        f"my {what} is {' '.join(number(d) for d in digits)}",
        f"{was} ist {' '.join(german_number(d) for d in digits)}",
    )


def _costs(rng: Random) -> Pair:
    thing, (money, geld) = rng.choice((*THINGS, *BOOKABLE)), amount(rng)
    about, etwa = rng.choice(
        (("only", "nur"), ("about", "ungefähr"), ("more than", "mehr als"))
    )
    return (
        f"the {thing.english} costs {about} {money}",
        f"{the(thing, 'nominative')} kostet {etwa} {geld}",
    )


def _not_yet(rng: Random) -> Pair:
    verb, things = rng.choice(
        (
            (("received", "bekommen"), (*DOCUMENTS, *THINGS)),
            (("found", "gefunden"), (*DOCUMENTS, *THINGS)),
            (("read", "gelesen"), DOCUMENTS),
        )
    )
    thing, person = rng.choice(things), rng.choice(PEOPLE)
    return (
        f"i have not {verb[0]} the {thing.english} from my {person.english} yet",
        f"ich habe {the(thing, 'accusative')} von {my(person, 'dative')} noch nicht "
        f"{verb[1]}",
    )


# Kinds of sentences and their share, per cent
_SENTENCES = (
    (_modal, 43),
    (_imperative, 11),
    (_because, 4),
    (_tell, 5),
    (_if, 4),
    (_next_train, 3),
    (_departure, 4),
    (_is_there, 4),
    (_happened, 5),
    (_called, 4),
    (_digits, 3),
    (_costs, 5),
    (_not_yet, 5),
)
