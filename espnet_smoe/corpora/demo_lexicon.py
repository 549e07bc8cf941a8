"""Words and short phrases of the demo corpus, English with German.

Lower case, no punctuation, numbers spelled out. A German noun carries its gender
(``m``, ``f``, ``n``), from which articles and endings follow.
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple

__all__ = [
    "ACCOUNTS",
    "ADJECTIVES",
    "ADJECTIVE_ENDING",
    "BOOKABLE",
    "CARDS",
    "CITIES",
    "COUNTED",
    "DEVICES",
    "DOCUMENTS",
    "EIN",
    "EVENTS",
    "MEIN",
    "MONTHS",
    "PEOPLE",
    "PLACES",
    "ROOMS",
    "SHOPS",
    "THE",
    "THINGS",
    "WEEKDAYS",
    "Counted",
    "Noun",
    "amount",
    "clock",
    "day_of_month",
    "german_number",
    "number",
    "pairs",
]


class Noun(NamedTuple):
    """A noun in both languages; ``gender`` is the German one."""

    english: str
    german: str
    gender: str


class Counted(NamedTuple):
    """A noun with plurals; ``one`` is the German accusative of "one"."""

    english: str
    english_plural: str
    one: str
    german: str
    german_plural: str


def pairs(table: str) -> tuple[tuple[str, str], ...]:
    """Parse ``english = german; ...``.

    >>> pairs("rome = rom; milan = mailand")
    (('rome', 'rom'), ('milan', 'mailand'))
    """
    entries = (entry.split("=") for entry in table.split(";"))
    return tuple((" ".join(e.split()), " ".join(g.split())) for e, g in entries)


def _nouns(table: str) -> tuple[Noun, ...]:
    genders = {"der": "m", "die": "f", "das": "n"}
    entries = ((e, *g.split()) for e, g in pairs(table))
    return tuple(Noun(e, german, genders[article]) for e, article, german in entries)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ACCOUNTS = _nouns(
    "savings account = das sparkonto; current account = das girokonto;"
    "business account = das geschäftskonto; joint account = das gemeinschaftskonto"
)
CARDS = _nouns("credit card = die kreditkarte; bank card = die bankkarte")
THINGS = CARDS + _nouns(
    "passport = der reisepass; suitcase = der koffer; phone = das telefon;"
    "key = der schlüssel; bag = die tasche; ticket = die fahrkarte;"
    "umbrella = der regenschirm; laptop = der laptop; wallet = die brieftasche;"
    "coat = der mantel; book = das buch; watch = die uhr"
)
DOCUMENTS = _nouns(
    "bill = die rechnung; contract = der vertrag; form = das formular;"
    "letter = der brief; offer = das angebot; list = die liste;"
    "report = der bericht; receipt = die quittung"
)
BOOKABLE = _nouns(
    "room = das zimmer; table = der tisch; apartment = die wohnung; car = das auto;"
    "flight = der flug; seat = der sitzplatz; boat = das boot; garage = die garage"
)
SHOPS = _nouns(
    "hotel = das hotel; restaurant = das restaurant; bakery = die bäckerei;"
    "pharmacy = die apotheke; bank = die bank; museum = das museum;"
    "supermarket = der supermarkt; park = der park; library = die bibliothek;"
    "cinema = das kino"
)
PEOPLE = _nouns(
    "sister = die schwester; brother = der bruder; mother = die mutter;"
    "father = der vater; daughter = die tochter; son = der sohn;"
    "landlord = der vermieter; wife = die frau; husband = der mann;"
    "aunt = die tante; uncle = der onkel; teacher = der lehrer"
)
PLACES = _nouns(
    "station = der bahnhof; airport = der flughafen; office = das büro;"
    "school = die schule; hospital = das krankenhaus; market = der markt;"
    "church = die kirche; bridge = die brücke"
)
DEVICES = _nouns(
    "light = das licht; heating = die heizung; radio = das radio;"
    "television = der fernseher; alarm = der alarm"
)
COUNTED = (
    Counted("ticket", "tickets", "eine", "fahrkarte", "fahrkarten"),
    Counted("apple", "apples", "einen", "apfel", "äpfel"),
    Counted("bottle", "bottles", "eine", "flasche", "flaschen"),
    Counted("chair", "chairs", "einen", "stuhl", "stühle"),
    Counted("lamp", "lamps", "eine", "lampe", "lampen"),
    Counted("stamp", "stamps", "eine", "briefmarke", "briefmarken"),
    Counted("newspaper", "newspapers", "eine", "zeitung", "zeitungen"),
    Counted("cake", "cakes", "einen", "kuchen", "kuchen"),
    Counted("pillow", "pillows", "ein", "kissen", "kissen"),
    Counted("egg", "eggs", "ein", "ei", "eier"),
)
ADJECTIVES = pairs(
    "cheap = günstig; quiet = ruhig; large = groß; small = klein; nice = schön;"
    "modern = modern; new = neu; bright = hell"
)
# English after "in the", German with its preposition
ROOMS = pairs(
    "kitchen = in der küche; living room = im wohnzimmer; bedroom = im schlafzimmer;"
    "bathroom = im badezimmer; garden = im garten; basement = im keller"
)
# German in the accusative
EVENTS = pairs(
    "the appointment = den termin; the meeting = die besprechung;"
    "the lesson = den unterricht; the party = die feier"
)
MONTHS = pairs(
    "january = januar; february = februar; march = märz; april = april; may = mai;"
    "june = juni; july = juli; august = august; september = september;"
    "october = oktober; november = november; december = dezember"
)
WEEKDAYS = pairs(
    "monday = montag; tuesday = dienstag; wednesday = mittwoch;"
    "thursday = donnerstag; friday = freitag; saturday = samstag; sunday = sonntag"
)
CITIES = pairs(
    "berlin = berlin; hamburg = hamburg; munich = münchen; cologne = köln;"
    "frankfurt = frankfurt; vienna = wien; zurich = zürich; rome = rom;"
    "paris = paris; london = london; geneva = genf; prague = prag;"
    "warsaw = warschau; milan = mailand; brussels = brüssel; lisbon = lissabon"
)

# German articles: case -> gender -> form
THE = {
    "nominative": {"m": "der", "f": "die", "n": "das"},
    "accusative": {"m": "den", "f": "die", "n": "das"},
}
MEIN = {
    "nominative": {"m": "mein", "f": "meine", "n": "mein"},
    "accusative": {"m": "meinen", "f": "meine", "n": "mein"},
    "dative": {"m": "meinem", "f": "meiner", "n": "meinem"},
}
EIN = {"m": "einen", "f": "eine", "n": "ein"}  # accusative
ADJECTIVE_ENDING = {"m": "en", "f": "e", "n": "es"}  # after EIN

_ONES = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen "
    "fourteen fifteen sixteen seventeen eighteen nineteen"
)
_TENS = _words("twenty thirty forty fifty sixty seventy eighty ninety")
_ORDINALS = {1: "first", 2: "second", 3: "third", 5: "fifth", 8: "eighth"}
_ORDINALS |= {9: "ninth", 12: "twelfth", 20: "twentieth", 30: "thirtieth"}
_EINER = _words(
    "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn "
    "vierzehn fünfzehn sechzehn siebzehn achtzehn neunzehn"
)
_ZEHNER = _words("zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig")
_ORDNUNG = {1: "ersten", 3: "dritten", 7: "siebten", 8: "achten"}


def number(n: int) -> str:
    """English cardinal of 0..999.

    >>> number(225)
    'two hundred and twenty five'
    """
    if n < 20:
        return _ONES[n]
    if n < 100:
        ones = f" {_ONES[n % 10]}" if n % 10 else ""
        return _TENS[n // 10 - 2] + ones
    rest = f" and {number(n % 100)}" if n % 100 else ""
    return f"{_ONES[n // 100]} hundred{rest}"


def german_number(n: int, one: str = "eins") -> str:
    """German cardinal of 0..999; ``one`` is the form of a final "one".

    >>> german_number(225), german_number(101, one="ein")
    ('zweihundertfünfundzwanzig', 'einhundertein')
    """
    if n >= 100:
        hundreds = "ein" if n < 200 else _EINER[n // 100]
        rest = german_number(n % 100, one) if n % 100 else ""
        return f"{hundreds}hundert{rest}"
    if n == 1:
        return one
    if n < 20:
        return _EINER[n]
    ones = {0: "", 1: "einund"}.get(n % 10, f"{_EINER[n % 10]}und")
    return ones + _ZEHNER[n // 10 - 2]


def day_of_month(n: int) -> tuple[str, str]:
    """Ordinals of 1..31: English, and German in the dative.

    >>> day_of_month(21)
    ('twenty first', 'einundzwanzigsten')
    """
    if n in _ORDINALS:
        english = _ORDINALS[n]
    elif n < 20:
        english = f"{_ONES[n]}th"
    else:
        english = f"{_TENS[n // 10 - 2]} {_ORDINALS.get(n % 10, f'{_ONES[n % 10]}th')}"
    ending = "ten" if n < 20 else "sten"
    return english, _ORDNUNG.get(n, german_number(n) + ending)


def clock(rng: Random) -> tuple[str, str]:
    """A time of day, to follow "at" and "um"; half past three is "halb vier"."""
    hour = rng.randint(1, 12)
    following = hour % 12 + 1
    kind = rng.random()
    if kind < 0.35:
        return f"{number(hour)} o'clock", f"{german_number(hour, one='ein')} uhr"
    if kind < 0.55:
        return f"half past {number(hour)}", f"halb {german_number(following)}"
    minutes = rng.choice((5, 10, 15, 20))
    if minutes == 15:
        english, german = "a quarter", "viertel"
    else:
        english, german = number(minutes), german_number(minutes)
    if kind < 0.78:
        return f"{english} past {number(hour)}", f"{german} nach {german_number(hour)}"
    return (
        f"{english} to {number(following)}",
        f"{german} vor {german_number(following)}",
    )


def amount(rng: Random) -> tuple[str, str]:
    """An amount of money, 1 to 999 euros or dollars."""
    n = rng.choice(
        (
            rng.randint(1, 99),
            rng.randint(1, 9) * 10,
            rng.randint(1, 9) * 100,
            rng.randint(100, 999),
        )
    )
    currency = rng.choice(("euro", "dollar"))
    plural = "" if n == 1 else "s"
    return (
        f"{number(n)} {currency}{plural}",
        f"{german_number(n, one='ein')} {currency}",
    )
