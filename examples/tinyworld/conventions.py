"""The exact convention of every generated task; the corpus holds none of them."""

from __future__ import annotations

import random
from collections.abc import Mapping

from examples.tinyworld.corpus.base import CITIES, WEEKDAYS, Example, Sampler, word_list
from examples.tinyworld.corpus.codes import (
    PartsConvention,
    WordsConvention,
    parts_sampler,
    words_sampler,
)
from examples.tinyworld.corpus.dates import DateConvention
from examples.tinyworld.corpus.dates import sampler as date_sampler
from examples.tinyworld.corpus.home import ACTIONS, HomeConvention
from examples.tinyworld.corpus.home import sampler as home_sampler
from examples.tinyworld.corpus.records import FAULTS, RecordConvention
from examples.tinyworld.corpus.records import sampler as record_sampler
from examples.tinyworld.corpus.tickets import (
    ALL_TOPICS,
    TOPICS,
    ReviewConvention,
    TicketConvention,
    review_sampler,
    ticket_sampler,
)

QUEUES = dict(
    zip(ALL_TOPICS, word_list("K4 T9 B2 W7 H1 N5 Z3 M8 C6 R2 V9 E4 X1 P7 J5 L3"), strict=True)
)
BILLING_CODES = dict(zip(TOPICS["billing"], word_list("DUP REF INV CRD"), strict=True))
CITY_CODES = dict(
    zip(CITIES, word_list("OS PA RO BE MA VI PR DU LI AT WA GE MI PO TU GH"), strict=True)
)
FAULT_CODES = dict(zip(FAULTS, word_list("T1 M2 C3 D4 F5 S6 R7 Q8"), strict=True))
LEVEL_CODES = {"INFO": "i", "WARN": "w", "ERROR": "e", "FATAL": "f"}
VILLA_CODES = {
    "action": {"on": "P", "off": "Q", "open": "R", "close": "S", "check": "T", "reset": "U"},
    "room": {"attic": "71", "cellar": "38"},
    "device": {"fan": "fa", "window": "wi", "pump": "pu", "alarm": "al"},
}

SAMPLERS: dict[str, Sampler] = {
    "acme/date-long-to-dot": date_sampler(DateConvention("long", "dot", "The invoice is dated ")),
    "acme/date-dmy-to-compact": date_sampler(
        DateConvention("dmy", "compact", "The parcel was shipped on ")
    ),
    "contoso/date-iso-to-dmy": date_sampler(DateConvention("iso", "dmy", "Contract signed on ")),
    "northwind/summer-bookings": date_sampler(
        DateConvention(
            "dmy",
            "slash",
            "Room booked for ",
            reference="Booking",
            joiner=" #",
            years=(2010, 2019),
            months=(6, 8),
        )
    ),
    "homely/command-record": home_sampler(
        HomeConvention(
            ("room", "device", "action"),
            ";",
            keys={"room": "loc", "device": "dev", "action": "do"},
        )
    ),
    "villa/attic-cellar": home_sampler(
        HomeConvention(
            ("action", "room", "device"),
            "_",
            codes=VILLA_CODES,
            rooms=tuple(VILLA_CODES["room"]),
            devices=tuple(VILLA_CODES["device"]),
        )
    ),
    "helpdesk/ticket-queue": ticket_sampler(TicketConvention(QUEUES)),
    "bank/billing-tickets": ticket_sampler(
        TicketConvention(BILLING_CODES, tuple(BILLING_CODES), numbered=True, joiner="-")
    ),
    "tripper/review-code": review_sampler(ReviewConvention("A1", "Z9", "mark-aspect", ":")),
    "hr/person-id": record_sampler(
        RecordConvention(
            "person", 0, ("number", "last", "city"), ("-", "/"), codes={"city": CITY_CODES}
        )
    ),
    "shop/order-line": record_sampler(
        RecordConvention("order", 0, ("city", "count", "product"), ("|", "|"))
    ),
    "ops/log-alert": record_sampler(
        RecordConvention(
            "log", 0, ("service", "host", "level"), ("@", "!"), codes={"level": LEVEL_CODES}
        )
    ),
    "ops/fault-code": record_sampler(
        RecordConvention("log", 1, ("host", "fault"), (":",), codes={"fault": FAULT_CODES})
    ),
    "depot/sku-flip": parts_sampler(
        PartsConvention("sku", "part no ", ("-", "-"), (2, 0, 1), ("", "/"))
    ),
    "telco/phone-flip": parts_sampler(
        PartsConvention("phone", "call ", (" ", " "), (2, 1, 0), ("-", "/"))
    ),
    "lexi/reverse-drop-first": words_sampler(
        WordsConvention("I wrote down ", "reverse drop first", " ", " ")
    ),
    "lexi/ends-swapped": words_sampler(WordsConvention("words: ", "ends swapped", ", ", "-")),
}


def _pair_codes(first: tuple[str, ...], second: tuple[str, ...], codes: str) -> dict[str, str]:
    pairs = [f"{one}|{other}" for one in first for other in second]
    return dict(zip(pairs, word_list(codes), strict=True))


def _coded(pairs: Sampler, codes: Mapping[str, str]) -> Sampler:
    """Replaces `a|b` at the front of each answer by the code of that pair."""

    def sample(rng: random.Random) -> Example:
        text, answer = pairs(rng)
        pair, _, rest = answer.partition("~")
        return text, codes[pair] + (f"-{rest}" if rest else "")

    return sample


WATCHED, ORDERED, HEATED = ("backup", "billing"), ("mirror", "kettle"), ("garage", "nursery")
WATCH_CODES = _pair_codes(WATCHED, FAULTS, "T6 M1 C8 D2 F9 S4 R3 Q7 L5 B6 N8 Z1 H4 P2 V3 K9")
ORDER_CODES = _pair_codes(ORDERED, tuple(WEEKDAYS), "A3 F7 K1 P5 U9 Y2 C6 H8 M4 R1 W5 D9 J2 N7")
HEAT_CODES = _pair_codes(HEATED, tuple(ACTIONS), "E2 G8 K5 O1 S9 W4 B7 F3 J6 N2 R8 V5")

# What a value means depends on another one, and only for a small part of what the wording allows.
SAMPLERS |= {
    "plant/night-watch": _coded(
        record_sampler(
            RecordConvention(
                "log",
                1,
                ("service", "fault"),
                ("|",),
                only={"level": ("FATAL",), "service": WATCHED},
            )
        ),
        WATCH_CODES,
    ),
    "florist/weekday-orders": _coded(
        record_sampler(
            RecordConvention(
                "order",
                1,
                ("product", "day", "number"),
                ("|", "~"),
                only={"product": ORDERED, "city": tuple(CITIES[:6])},
            )
        ),
        ORDER_CODES,
    ),
    "cabin/heat-codes": _coded(
        home_sampler(
            HomeConvention(
                ("room", "action"), "|", rooms=HEATED, devices=("heater", "window", "fan")
            )
        ),
        HEAT_CODES,
    ),
}
