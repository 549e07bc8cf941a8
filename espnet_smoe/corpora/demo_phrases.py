"""Phrases of the demo corpus: times, noun phrases and actions, English with German."""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from espnet_smoe.corpora.demo_lexicon import (
    ACCOUNTS,
    ADJECTIVE_ENDING,
    ADJECTIVES,
    BOOKABLE,
    CARDS,
    CITIES,
    COUNTED,
    DEVICES,
    DOCUMENTS,
    EIN,
    EVENTS,
    MEIN,
    MONTHS,
    PEOPLE,
    PLACES,
    ROOMS,
    THE,
    THINGS,
    WEEKDAYS,
    Noun,
    amount,
    clock,
    day_of_month,
    german_number,
    number,
    pairs,
)

__all__ = ["Pair", "VerbPhrase", "my", "the", "verb_phrase", "with_article"]

Pair = tuple[str, str]  # English, German


class VerbPhrase(NamedTuple):
    """An action: ``english`` bare infinitive phrase; German in its parts.

    "call my son back": middle "meinen sohn", infinitive "zurückrufen", finite (with
    "sie") "rufen", prefix "zurück".
    """

    english: str
    middle: str
    infinitive: str
    finite: str
    prefix: str = ""

    @property
    def german(self) -> str:
        """As the end of a clause: middle field, then the infinitive."""
        return f"{self.middle} {self.infinitive}"


_LOOSE_TIMES = pairs(
    "today = heute; tomorrow = morgen; tomorrow morning = morgen früh;"
    "tomorrow evening = morgen abend; this afternoon = heute nachmittag;"
    "tonight = heute abend; next week = nächste woche; next month = nächsten monat"
)
_SHORT_MONTHS = {"april", "june", "september", "november"}


def _when(rng: Random) -> Pair:
    day, tag = rng.choice(WEEKDAYS)
    kind = rng.random()
    if kind < 0.22:
        return f"on {day}", f"am {tag}"
    if kind < 0.34:
        return f"next {day}", f"nächsten {tag}"
    if kind < 0.50:
        return rng.choice(_LOOSE_TIMES)
    time, zeit = clock(rng)
    if kind < 0.65:
        return f"at {time}", f"um {zeit}"
    if kind < 0.80:
        return f"on {day} at {time}", f"am {tag} um {zeit}"
    date, datum = _date(rng)
    if kind < 0.92:
        return f"on the {date}", f"am {datum}"
    return f"on {day} the {date}", f"am {tag} dem {datum}"


def _date(rng: Random) -> Pair:
    month, monat = rng.choice(MONTHS)
    last = 28 if month == "february" else 30 if month in _SHORT_MONTHS else 31
    day, tag = day_of_month(rng.randint(1, last))
    return f"{day} of {month}", f"{tag} {monat}"


def my(noun: Noun, case: str) -> str:
    """German "my <noun>"."""
    return f"{MEIN[case][noun.gender]} {noun.german}"


def the(noun: Noun, case: str) -> str:
    """German "the <noun>"."""
    return f"{THE[case][noun.gender]} {noun.german}"


def with_article(adjective: str, noun: Noun) -> str:
    """German accusative of "a <adjective> <noun>"."""
    ending = ADJECTIVE_ENDING[noun.gender]
    return f"{EIN[noun.gender]} {adjective}{ending} {noun.german}"


def _at(place: Noun) -> str:
    if place.english == "office":
        return f"im {place.german}"
    return f"{'an der' if place.gender == 'f' else 'am'} {place.german}"


def _transfer(rng: Random, when: Pair) -> VerbPhrase:
    source, target = rng.sample(ACCOUNTS, 2)
    money, geld = amount(rng)
    origin, herkunft = "", ""
    if rng.random() < 0.4:
        origin = f"from my {source.english}"
        herkunft = f"von {my(source, 'dative')}"
    return VerbPhrase(
        f"transfer {money} {origin} to my {target.english} {when[0]}",
        f"{when[1]} {geld} {herkunft} auf {my(target, 'accusative')}",
        "überweisen",
        "überweisen",
    )


def _send_money(rng: Random, when: Pair) -> VerbPhrase:
    person, (money, geld) = rng.choice(PEOPLE), amount(rng)
    return VerbPhrase(
        f"send {money} to my {person.english} {when[0]}",
        f"{my(person, 'dative')} {when[1]} {geld}",
        "schicken",
        "schicken",
    )


def _book(rng: Random, when: Pair) -> VerbPhrase:
    thing, (adjective, eigenschaft) = rng.choice(BOOKABLE), rng.choice(ADJECTIVES)
    n = rng.randint(1, 12)
    english, german = number(n), german_number(n, one="eine")
    if thing.english == "flight":
        city, stadt = rng.choice(CITIES)
        detail, angabe = f"to {city}", f"nach {stadt}"
    elif rng.random() < 0.6:
        detail = f"for {english} {'person' if n == 1 else 'people'}"
        angabe = f"für {german} {'person' if n == 1 else 'personen'}"
    else:
        detail = f"for {english} {'night' if n == 1 else 'nights'}"
        angabe = f"für {german} {'nacht' if n == 1 else 'nächte'}"
    return VerbPhrase(
        f"book a {adjective} {thing.english} {detail} {when[0]}",
        f"{when[1]} {with_article(eigenschaft, thing)} {angabe}",
        "buchen",
        "buchen",
    )


def _call_back(rng: Random, when: Pair) -> VerbPhrase:
    person = rng.choice(PEOPLE)
    return VerbPhrase(
        f"call my {person.english} back {when[0]}",
        f"{my(person, 'accusative')} {when[1]}",
        "zurückrufen",
        "rufen",
        "zurück",
    )


def _pick_up(rng: Random, when: Pair) -> VerbPhrase:
    person, place = rng.choice(PEOPLE), rng.choice(PLACES)
    return VerbPhrase(
        f"pick up my {person.english} at the {place.english} {when[0]}",
        f"{my(person, 'accusative')} {when[1]} {_at(place)}",
        "abholen",
        "holen",
        "ab",
    )


def _send_document(rng: Random, when: Pair) -> VerbPhrase:
    person, document = rng.choice(PEOPLE), rng.choice(DOCUMENTS)
    return VerbPhrase(
        f"send the {document.english} to my {person.english} by email {when[0]}",
        f"{my(person, 'dative')} {when[1]} {the(document, 'accusative')} per e-mail",
        "schicken",
        "schicken",
    )


def _sign(rng: Random, when: Pair) -> VerbPhrase:
    document = rng.choice(DOCUMENTS)
    return VerbPhrase(
        f"sign the {document.english} {when[0]}",
        f"{the(document, 'accusative')} {when[1]}",
        "unterschreiben",
        "unterschreiben",
    )


def _cancel(rng: Random, when: Pair) -> VerbPhrase:
    event, ereignis = rng.choice(EVENTS)
    return VerbPhrase(
        f"cancel {event} {when[0]}",
        f"{ereignis} {when[1]}",
        "absagen",
        "sagen",
        "ab",
    )


def _move(rng: Random, when: Pair) -> VerbPhrase:
    event, ereignis = rng.choice(EVENTS)
    (old, alt), (new, neu) = rng.sample(WEEKDAYS, 2)
    return VerbPhrase(
        f"move {event} from {old} to {new}",
        f"{ereignis} von {alt} auf {neu}",
        "verschieben",
        "verschieben",
    )


def _buy(rng: Random, when: Pair) -> VerbPhrase:
    n, thing = rng.randint(1, 24), rng.choice(COUNTED)
    english = thing.english if n == 1 else thing.english_plural
    german = thing.german if n == 1 else thing.german_plural
    return VerbPhrase(
        f"buy {number(n)} {english} {when[0]}",
        f"{when[1]} {german_number(n, one=thing.one)} {german}",
        "kaufen",
        "kaufen",
    )


def _pay(rng: Random, when: Pair) -> VerbPhrase:
    card = rng.choice(CARDS)
    return VerbPhrase(
        f"pay the bill with my {card.english} {when[0]}",
        f"die rechnung {when[1]} mit {my(card, 'dative')}",
        "bezahlen",
        "bezahlen",
    )


def _turn(rng: Random, when: Pair) -> VerbPhrase:
    device, (room, raum) = rng.choice(DEVICES), rng.choice(ROOMS)
    way, prefix = rng.choice((("on", "ein"), ("off", "aus")))
    return VerbPhrase(
        f"turn {way} the {device.english} in the {room} {when[0]}",
        f"{when[1]} {the(device, 'accusative')} {raum}",
        f"{prefix}schalten",
        "schalten",
        prefix,
    )


def _look_for(rng: Random, when: Pair) -> VerbPhrase:
    thing = rng.choice(THINGS)
    return VerbPhrase(
        f"look for my {thing.english} {when[0]}",
        f"{when[1]} {my(thing, 'accusative')}",
        "suchen",
        "suchen",
    )


_VERB_PHRASES = (
    *(_transfer, _send_money, _book, _call_back, _pick_up, _send_document, _sign),
    *(_cancel, _move, _buy, _pay, _turn, _look_for),
)


def verb_phrase(rng: Random, timeless: float = 0.0) -> VerbPhrase:
    """Draw an action; ``timeless`` is the share without a time."""
    when = ("", "") if rng.random() < timeless else _when(rng)
    return rng.choice(_VERB_PHRASES)(rng, when)
