"""Exercises on numbers: stories, sequences, digits, number theory, equations, clocks and units."""

from collections.abc import Callable
from fractions import Fraction
from math import gcd
from random import Random
from typing import Any

from pipeline.corpus.exercises.exercise import EASY, HARD, MEDIUM, Exercise, compose, rows_of
from pipeline.corpus.exercises.templates.words import PEOPLE, THINGS


def story(draw: Random, difficulty: str) -> Exercise:
    """A sum from daily life, with the steps of the reckoning as comments."""
    person, thing = draw.choice(PEOPLE), draw.choice(THINGS)
    price, gift, pack = draw.randint(2, 40), draw.randint(1, 30), draw.randint(3, 12)
    off = draw.choice([5, 10, 20, 25])
    rows: list[tuple[Any, ...]] = [
        (EASY, "shop", "count, money", f"{person} has `money` coins and buys `count` {thing} at {price} coins each, "
         "then "
         f"gets {gift} coins back as a gift. How many coins does {person} have now?",
         [f"# {thing} cost count * {price}", f"left = money - count * {price}", f"return left + {gift}"],
         lambda count, money: money + gift - price * count,
         f"The {thing} cost {price} times their number. That is taken away first, and the gift is added."),
        (EASY, "boxes", "boxes, loose", f"{person} has `boxes` boxes of {pack} {thing} and `loose` single ones, and "
         "needs "
         f"{price * pack} in all. How many are missing? 0 if there are enough.",
         [f"have = boxes * {pack} + loose", f"return max(0, {price * pack} - have)"],
         lambda boxes, loose: max(pack * (price - boxes) - loose, 0),
         f"Each box counts {pack}. The maximum with 0 keeps the answer from falling below nothing."),
        (MEDIUM, "packs", "count", f"{thing.capitalize()} are sold in packs of {pack}. How many packs must {person} "
         "buy "
         f"to have at least `count` {thing}, and how many are left over? Return both as a pair.",
         [f"packs = (count + {pack - 1}) // {pack}", f"return packs, packs * {pack} - count"],
         lambda count: (-(-count // pack), -count % pack),
         f"Whole division rounds down, but a begun pack must be bought. Adding {pack - 1} first rounds up instead."),
        (MEDIUM, "share", "count, people", f"{person} keeps {gift} of `count` {thing} and shares the rest equally "
         "among "
         "`people` friends. How many does each friend get, and how many remain? Return both as a pair.",
         [f"rest = count - {gift}", "return rest // people, rest % people"],
         lambda count, people: divmod(count - gift, people),
         "`//` says how many each one gets, and `%` what cannot be shared."),
        (MEDIUM, "discount", "count", f"A shop sells {thing} at {price} coins; from {pack} of them on, all are {off}% "
         f"cheaper. What do `count` {thing} cost {person}, in hundredths of a coin?",
         [f"cost = count * {price} * 100", f"if count >= {pack}:", f"    cost = cost * {100 - off} // 100",
          "return cost"],
         lambda count: price * count * (100 - off if count >= pack else 100),
         "Counting in hundredths keeps the sum in whole numbers, so nothing is lost by rounding."),
        (HARD, "saving", "days", f"{person} saves {price} coins on the first day and {gift} coins more each day than "
         "the "
         "day before. How many coins are saved after `days` days?",
         ["total = 0", f"today = {price}", "for _ in range(days):", "    total += today", f"    today += {gift}",
          "return total"],
         lambda days: days * price + gift * days * (days - 1) // 2,
         "Two numbers change from day to day: what is saved so far, and what is added today."),
        (HARD, "trip", "distance", f"{person} walks {pack} km an hour and rests {gift} minutes after every full hour "
         "of "
         "walking that is not the end. How many minutes does a trip of `distance` km take? Round the walking time "
         "down to whole minutes.",
         [f"walking = distance * 60 // {pack}", "rests = max(0, (walking - 1) // 60)",
          f"return walking + rests * {gift}"],
         lambda distance: (m := distance * 60 // pack) + gift * len([x for x in range(60, m, 60)]),
         "Full hours are counted by whole division. One is taken away first, because the last hour may be the end."),
    ]  # fmt: skip
    variant, arguments, question, lines, expected, idea = draw.choice(rows_of(difficulty, rows))
    value = lambda a: draw.randint(2, 9) if a in ("people", "boxes", "loose") else draw.randint(gift + 1, 120)  # noqa: E731
    inputs = [tuple(value(a.strip()) for a in arguments.split(",")) for _ in range(4)]
    name = f"{variant}_{person.lower()}_{thing}"
    return compose(
        draw, "story", variant, name, arguments, [question], "\n".join(lines), expected, inputs, idea=idea,
        difficulty=difficulty,
    )  # fmt: skip


def recurrence(draw: Random, difficulty: str) -> Exercise:
    """Terms of a sequence defined by the one or two before it."""
    a, b, c = draw.randint(1, 4), draw.choice([-3, -2, -1, 1, 2, 3, 4]), draw.randint(-5, 9)
    b = 0 if difficulty == EASY else b
    first, second = draw.randint(0, 7), draw.randint(1, 9)
    modulus = draw.randint(11, 97) if difficulty == HARD else None
    sign = lambda x: "+" if x >= 0 else "-"  # noqa: E731
    older = (f" {sign(b)} {abs(b)} * s(n-2)", f" {sign(b)} {abs(b)} * x") if b else ("", "")
    rule = f"{a} * s(n-1){older[0]} {sign(c)} {abs(c)}"
    formula = f"{a} * y{older[1]} {sign(c)} {abs(c)}"
    if modulus:
        rule, formula = f"({rule}) mod {modulus}", f"({formula}) % {modulus}"

    def terms(n: int) -> list[int]:
        found = [first, second]
        while len(found) < n:
            value = a * found[-1] + b * found[-2] + c
            found.append(value % modulus if modulus else value)
        return found[:n]

    defined = f"A sequence starts with s(0) = {first} and s(1) = {second}; after that s(n) = {rule}."
    if draw.random() < 0.5:
        variant, what, expected = "nth", "Return s(n).", lambda n: terms(n + 1)[n]
        body = f"x, y = {first}, {second}\nfor _ in range(n):\n    x, y = y, {formula}\nreturn x"
        idea = "Two neighbours are enough to go on: each round forgets the older one and computes the next."
    else:
        variant, what, expected = "list", "Return the first n terms as a list.", terms
        body = (
            f"terms = []\nx, y = {first}, {second}\nwhile len(terms) < n:\n    terms.append(x)\n"
            f"    x, y = y, {formula}\nreturn terms"
        )
        idea = "The pair of neighbours slides along the sequence, and its left one is written down each time."
    variant += "-mod" if modulus else "-one" if not b else ""
    name = f"sequence_{a}_{abs(b)}_{first}{second}" + (f"_mod_{modulus}" if modulus else "")
    inputs = [(n,) for n in draw.sample(range(9), 4)]
    return compose(
        draw, "recurrence", variant, name, "n", [f"{defined} {what}"], body, expected, inputs, idea=idea,
        difficulty=difficulty,
    )  # fmt: skip


def digits(draw: Random, difficulty: str) -> Exercise:
    """Digits of a number in some base."""
    base, digit = 10 if difficulty == EASY else draw.randint(2, 9), draw.randint(1, 9)
    digit = digit % base or 1
    rows = [
        ((EASY, MEDIUM), "sum", "the sum of its digits", "sum(digits)", lambda ds: sum(ds)),
        ((EASY, MEDIUM), "count", f"how often the digit {digit} occurs", f"digits.count({digit})",
         lambda ds: len([d for d in ds if d == digit])),
        (MEDIUM, "text", "its digits as a string", "''.join(str(d) for d in reversed(digits))",
         lambda ds: "".join(map(str, ds[::-1]))),
        (HARD, "palindrome", "whether it reads the same from both ends", "digits == digits[::-1]",
         lambda ds: all(a == b for a, b in zip(ds, reversed(ds), strict=True))),
        ((EASY, MEDIUM), "largest", "its largest digit", "max(digits)", lambda ds: sorted(ds)[-1]),
        (HARD, "alternating", "the alternating sum of its digits, starting with plus at the last digit",
         "sum(d if i % 2 == 0 else -d for i, d in enumerate(digits))", lambda ds: sum(ds[::2]) - sum(ds[1::2])),
        (HARD, "product", f"the product of its digits other than 0, plus {digit}",
         None, lambda ds: digit + eval("*".join(str(d) for d in ds if d))),
    ]  # fmt: skip
    variant, what, finish, expected = draw.choice(rows_of(difficulty, rows))
    tasks = [
        f"Write the positive integer `n` in base {base} and return {what}.",
        f"For a number n > 0 in base {base}, return {what}.",
    ]
    body = f"digits = []\nwhile n:\n    digits.append(n % {base})\n    n //= {base}\nreturn {finish}"
    idea = f"The remainder by {base} is the last digit, and whole division by {base} takes it away; at 0 none is left."
    if variant == "product":
        body = f"product = 1\nwhile n:\n    product *= n % {base} or 1\n    n //= {base}\nreturn product + {digit}"
        idea += " `or 1` makes a digit of 0 count as 1."

    def of(n: int) -> Any:
        power = 1
        while power * base <= n:
            power *= base
        found = []
        while power:
            found.insert(0, n // power % base)
            power //= base
        return expected(found)

    inputs = [(draw.randint(1, 5_000),) for _ in range(4)]
    return compose(
        draw, "digits", variant, f"{variant}_in_base_{base}", "n", tasks, body, of, inputs, idea=idea,
        difficulty=difficulty,
    )  # fmt: skip


def number_theory(draw: Random, difficulty: str) -> Exercise:
    """Divisors, primes, common measures."""
    k = draw.randint(2, 12)
    one = [(n,) for n in draw.sample(range(4, 90), 4)]
    two = [(draw.randint(2, 60) * k, draw.randint(2, 60) * k) for _ in range(4)]
    divisors = lambda n: [d for d in range(1, n + 1) if n % d == 0]  # noqa: E731
    prime = lambda n: len(divisors(n)) == 2  # noqa: E731
    rows: list[tuple[Any, ...]] = [
        (EASY, "divisors", f"divisors_above_{k}", "n", f"Return the divisors of `n` that are greater than {k}, in "
         "order.",
         f"return [d for d in range({k + 1}, n + 1) if n % d == 0]", lambda n: [d for d in divisors(n) if d > k], one,
         "A divisor leaves no remainder, and none is greater than the number itself."),
        (EASY, "multiples", f"multiples_sum_{k}", "n", f"Return the sum of all multiples of {k} from {k} up to `n`.",
         f"return sum(range({k}, n + 1, {k}))", lambda n: k * (m := n // k) * (m + 1) // 2, one,
         f"A range with step {k} visits exactly the multiples."),
        (MEDIUM, "gcd", "common_measure", "a, b", f"Return the greatest common divisor of `a` and `b`, times {k}.",
         f"while b:\n    a, b = b, a % b\nreturn a * {k}", lambda a, b: k * gcd(a, b), two,
         "Any common divisor of two numbers divides the remainder of their division too. So the larger one can be "
         "replaced by that remainder until it is 0. This is Euclid's algorithm."),
        (MEDIUM, "prime", "next_prime", "n", f"Return the smallest prime that is at least `n` + {k}.",
         f"n += {k}\nwhile any(n % d == 0 for d in range(2, n)):\n    n += 1\nreturn n",
         lambda n: next(m for m in range(n + k, 10_000) if prime(m)), one,
         "A number is prime if nothing between 1 and itself divides it; the loop goes on until that is so."),
        (HARD, "factors", "factors", "n", f"Return the prime factors of `n` * {k} in order, repeated ones as often as "
         "they occur.",
         f"n *= {k}\nfactors, d = [], 2\nwhile d * d <= n:\n    while n % d == 0:\n        factors.append(d)\n"
         "        n //= d\n    d += 1\nreturn factors + [n] if n > 1 else factors",
         lambda n: [p for p in range(2, n * k + 1) if prime(p) for e in range(1, 12) if n * k % p**e == 0], one,
         "Dividing a factor out as often as it goes leaves no multiple of it behind, so every divisor found is prime. "
         "Beyond the square root at most one factor is left."),
        (HARD, "power", f"power_mod_{k + 90}", "base, exponent", f"Return `base` to the power of `exponent`, modulo "
         f"{k + 90}, with few multiplications.",
         f"result = 1\nwhile exponent:\n    if exponent % 2:\n        result = result * base % {k + 90}\n"
         f"    base = base * base % {k + 90}\n    exponent //= 2\nreturn result",
         lambda base, exponent: pow(base, exponent, k + 90), two,
         "Squaring doubles the exponent. The binary digits of the exponent say which of the squares belong into the "
         "product."),
        (HARD, "sieve", f"primes_from_{k}", "n", f"Return the primes from {k} up to `n`, by crossing out multiples.",
         "crossed = set()\nfor d in range(2, n + 1):\n    if d not in crossed:\n"
         f"        crossed.update(range(d * d, n + 1, d))\nreturn [d for d in range({k}, n + 1) if d not in crossed]",
         lambda n: [m for m in range(k, n + 1) if prime(m)], one,
         "What is not crossed out when its turn comes is prime. Its smaller multiples were crossed out already, so the "
         "crossing starts at its square."),
    ]  # fmt: skip
    variant, name, arguments, task, body, expected, inputs, idea = draw.choice(rows_of(difficulty, rows))
    return compose(
        draw, "number_theory", variant, name, arguments, [task], body, expected, inputs, idea=idea,
        difficulty=difficulty,
    )  # fmt: skip


def equations(draw: Random, difficulty: str) -> Exercise:
    """Unknown numbers from what is known about them, exactly, as fractions where need be."""
    a, b, c = draw.randint(2, 9), draw.randint(1, 30), draw.randint(2, 7)
    person, other = draw.sample(PEOPLE, 2)
    one = [(n,) for n in draw.sample(range(5, 90), 4)]
    two = [(draw.randint(3, 40), draw.randint(3, 40)) for _ in range(4)]
    rows: list[tuple[Any, ...]] = [
        (EASY, "linear", f"solve_{a}x_plus_{b}", "total", f"{person} thinks of a number x and says that {a} * x + {b} "
         "is "
         "`total`. Return x if it is a whole number, else None.",
         f"rest = total - {b}\nreturn rest // {a} if rest % {a} == 0 else None",
         lambda total: next((x for x in range(-200, 200) if a * x + b == total), None), [*one, (a * c + b,)],
         f"What was done to x is undone in reverse: take {b} away, then divide by {a}. A remainder means that no whole "
         "number fits."),
        (EASY, "average", "missing_value", "known, average", f"The average of {person}'s numbers is to be `average` "
         "with one "
         f"number more, and {b} points are added to the sum as a bonus. Return the number that is missing.",
         f"return average * (len(known) + 1) - sum(known) - {b}",
         lambda known, average: average + sum(average - x for x in known) - b,
         [([draw.randint(1, 60) for _ in range(draw.randint(2, 4))], draw.randint(10, 50)) for _ in range(4)],
         "An average times the number of values is their sum; what the known ones lack of it is the answer."),
        (MEDIUM, "ages", "ages", "together, years", f"{person} is `years` years older than {other}, and {a} times the "
         "age "
         f"of {other} plus the age of {person} is `together`. Return both ages as fractions, {person}'s first.",
         f"other = Fraction(together - years, {a + 1})\nreturn other + years, other",
         lambda t, y: (Fraction(t + a * y, a + 1), Fraction(t - y, a + 1)), two,
         f"{person}'s age is the other one plus `years`, so {a + 1} times the younger age and `years` make the total."),
        (MEDIUM, "ratio", "shares", "amount", f"{person} and {other} share `amount` in the ratio {a} to {c}. Return "
         "both "
         "shares as fractions.",
         f"part = Fraction(amount, {a + c})\nreturn {a} * part, {c} * part",
         lambda n: (Fraction(n * a, a + c), n - Fraction(n * a, a + c)), one,
         f"There are {a + c} equal parts in all, {a} for the one and {c} for the other."),
        (HARD, "pair", "two_unknowns", "p, q", f"Return (x, y) as fractions with {a} * x + {c} * y == p and x - y == "
         "q + "
         f"{b}.",
         f"y = Fraction(p - {a} * (q + {b}), {a + c})\nreturn y + q + {b}, y",
         lambda p, q: (Fraction(p + c * (q + b), a + c), Fraction(p - a * q - a * b, a + c)), two,
         f"The second equation says x = y + q + {b}. Put into the first one, only y is unknown there."),
        (HARD, "work", "hours_together", "first, second", f"{person} needs `first` hours for a job and {other} "
         "`second`. Both "
         f"work together, but {b} minutes in all are lost by talking. Return the minutes it takes, as a fraction.",
         f"return 60 * Fraction(first * second, first + second) + {b}",
         lambda p, q: b + 60 / (Fraction(1, p) + Fraction(1, q)), two,
         "In an hour each does one part of the job; the parts add up, and one over their sum is the time for the "
         "whole."),
    ]  # fmt: skip
    variant, name, arguments, task, body, expected, inputs, idea = draw.choice(rows_of(difficulty, rows))
    return compose(
        draw, "equations", variant, name, arguments, [task], body, expected, inputs, idea=idea, difficulty=difficulty,
        imports=["from fractions import Fraction"] if "Fraction" in body else (),
    )  # fmt: skip


def clock(draw: Random, difficulty: str) -> Exercise:
    """Hours, minutes, weekdays, and other units that carry over."""
    k = draw.randint(5, 95)
    days = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
    time = lambda: f"{draw.randint(0, 23):02d}:{draw.randint(0, 59):02d}"  # noqa: E731
    minutes = lambda t: int(t[:2]) * 60 + int(t[3:])  # noqa: E731
    rows: list[tuple[str, str, str, str, str, str, Callable[..., Any], list, str]] = [
        (EASY, "minutes", f"minutes_plus_{k}", "time", f"`time` is a text such as '07:45'. Return the minutes since "
         f"midnight, plus {k}.",
         f"hours, minutes = time.split(':')\nreturn int(hours) * 60 + int(minutes) + {k}",
         lambda t: k + minutes(t), [(time(),) for _ in range(4)], "An hour has 60 minutes; the two parts are added "
             "up."),
        (EASY, "weekday", f"weekday_after_{k}", "day", f"Return the weekday {k} days after `day`, such as 'Monday'.",
         f"days = {list(days)!r}\nreturn days[(days.index(day) + {k}) % 7]",
         lambda d: (days * 20)[days.index(d) + k], [(d,) for d in draw.sample(days, 3)],
         "Weekdays come back after seven, so only the remainder by 7 counts."),
        (MEDIUM, "later", f"time_{k}_minutes_later", "time", f"`time` is a text such as '07:45'. Return the time {k} "
         "minutes later in the same form; after midnight it starts again at '00:00'.",
         f"hours, minutes = time.split(':')\ntotal = (int(hours) * 60 + int(minutes) + {k}) % 1440\n"
         "return f'{total // 60:02d}:{total % 60:02d}'",
         lambda t: f"{(minutes(t) + k) // 60 % 24:02d}:{(int(t[3:]) + k) % 60:02d}", [(time(),) for _ in range(4)],
         "Everything is turned into minutes, added there, and turned back; 1440 minutes are a day."),
        (MEDIUM, "units", "in_words", "seconds", f"Return how many whole hours, minutes and seconds `seconds` + {k} "
         "seconds are, as a list of three numbers.",
         f"minutes, seconds = divmod(seconds + {k}, 60)\nhours, minutes = divmod(minutes, 60)\n"
         "return [hours, minutes, seconds]",
         lambda s: [(s + k) // 3600, (s + k) // 60 % 60, (s + k) % 60],
         [(draw.randint(50, 20_000),) for _ in range(4)],
         "`divmod` splits off the seconds, and the same again splits the minutes from the hours."),
        (HARD, "between", "minutes_between", "start, end", "Both are texts such as '23:10'. Return the minutes from "
         f"`start` to `end`, which may be on the next day, without a break of {k} minutes if it lasts longer than "
         "that.",
         "def since_midnight(time):\n    hours, minutes = time.split(':')\n    return int(hours) * 60 + int(minutes)\n"
         "\n"
         "lasts = (since_midnight(end) - since_midnight(start)) % 1440\n"
         f"return lasts - {k} if lasts > {k} else lasts",
         lambda s, e: (m := minutes(e) + (1440 if e < s else 0) - minutes(s)) - (k if m > k else 0),
         [(time(), time()) for _ in range(4)],
         "A negative difference means that midnight lies between; the remainder by 1440 makes it right."),
        (HARD, "leap", "days_of_year", "year", f"Return the number of days of `year` minus {k}: leap years are "
         "divisible "
         "by 4, but not by 100 unless by 400.",
         f"leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)\nreturn 365 - {k} + leap",
         lambda y: (366 if y % 400 == 0 or (y % 4 == 0 and y % 100) else 365) - k,
         [(y,) for y in (draw.randint(1900, 2100), 1900 + 100 * draw.randint(0, 3), 2000, draw.randint(475, 520) * 4)],
         "A true value counts as 1 when it is added."),
    ]  # fmt: skip
    variant, name, arguments, task, body, expected, inputs, idea = draw.choice(rows_of(difficulty, rows))
    return compose(
        draw, "clock", variant, name, arguments, [task], body, expected, inputs, idea=idea, difficulty=difficulty
    )
