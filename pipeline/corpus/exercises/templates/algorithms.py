"""Exercises on algorithms: searching, sorting, dynamic programming, graphs, recursion."""

from functools import cache
from itertools import combinations, pairwise, permutations, product
from random import Random
from typing import Any

from pipeline.corpus.exercises.exercise import EASY, HARD, MEDIUM, Exercise, compose, rows_of
from pipeline.corpus.exercises.templates.words import CITIES, PEOPLE, THINGS, WORDS, numbers


def search(draw: Random, difficulty: str) -> Exercise:
    """Finding a place: by looking at all, by halving, by halving over answers."""
    k, hours = draw.randint(2, 30), draw.randint(5, 12)
    plain = [(numbers(draw, 0, 40), draw.randint(0, 40)) for _ in range(4)]
    ordered = [(sorted(numbers(draw, 0, 40)), draw.randint(0, 40)) for _ in range(4)]
    single = [(n,) for n in draw.sample(range(2, 400), 4)]
    piles = [([draw.randint(1, 30) for _ in range(draw.randint(2, 4))],) for _ in range(4)]
    rows: list[tuple[Any, ...]] = [
        (EASY, "nearest", "nearest", "xs, target", f"Return the element of `xs` nearest to `target` + {k}; of equally "
         "near "
         "ones the first.",
         f"best = xs[0]\nfor x in xs:\n    if abs(x - target - {k}) < abs(best - target - {k}):\n        best = x\n"
         "return best",
         lambda xs, t: sorted(xs, key=lambda x: (abs(x - (t + k)), xs.index(x)))[0], plain,
         "The best one so far is replaced only by a strictly nearer one, so the first of equals stays."),
        (EASY, "all", f"places_above_{k}", "xs, target", f"Return the indices at which `xs` is greater than `target` "
         "by at "
         f"most {k}.",
         f"return [i for i, x in enumerate(xs) if 0 < x - target <= {k}]",
         lambda xs, t: [i for i in range(len(xs)) if xs[i] in range(t + 1, t + k + 1)], plain,
         "`enumerate` gives index and element together; the chained comparison checks both limits."),
        (MEDIUM, "first_at_least", f"first_at_least_{k}", "xs, target", "`xs` is sorted. Return the first index whose "
         f"element is at least `target` - {k}, or the length of the list; halve the range instead of looking at all.",
         f"low, high = 0, len(xs)\nwhile low < high:\n    middle = (low + high) // 2\n    if xs[middle] < target - "
         f"{k}:\n"
         "        low = middle + 1\n    else:\n        high = middle\nreturn low",
         lambda xs, t: sum(x < t - k for x in xs), ordered,
         "Everything before `low` is too small, and everything from `high` on is large enough. Each step halves what "
         "lies between."),
        (MEDIUM, "count", "count_between", "xs, target", f"`xs` is sorted. Return how many elements lie between "
         "`target` "
         f"and `target` + {k}, both included.",
         f"return bisect_right(xs, target + {k}) - bisect_left(xs, target)",
         lambda xs, t: len([x for x in xs if t <= x <= t + k]), ordered,
         "`bisect_left` says how many are smaller than a value, `bisect_right` how many are not greater."),
        (HARD, "root", f"root_of_{k}_times", "n", f"Return the largest whole number r with {k} * r * r <= n, without "
         "square roots.",
         f"low, high = 0, n + 1\nwhile high - low > 1:\n    middle = (low + high) // 2\n"
         f"    if {k} * middle * middle <= n:\n        low = middle\n    else:\n        high = middle\nreturn low",
         lambda n: [r for r in range(n + 1) if k * r * r <= n][-1], single,
         "`low` always fits and `high` never does. They close in on each other until they are neighbours."),
        (HARD, "speed", f"slowest_within_{hours}", "piles", f"A machine handles s things of one pile an hour and "
         "turns to "
         f"the next pile only with a new hour. Return the smallest s with which all piles are done in {hours} hours.",
         "low, high = 0, max(piles)\nwhile high - low > 1:\n    speed = (low + high) // 2\n"
         "    needed = sum((pile + speed - 1) // speed for pile in piles)\n"
         f"    if needed <= {hours}:\n        high = speed\n    else:\n        low = speed\nreturn high",
         lambda ps: next(s for s in range(1, 100) if sum(-(-p // s) for p in ps) <= hours), piles,
         "If a speed is enough, every higher one is. So the border between too slow and fast enough can be found by "
         "halving the range of speeds."),
    ]  # fmt: skip
    variant, name, arguments, task, body, expected, inputs, idea = draw.choice(rows_of(difficulty, rows))
    return compose(
        draw, "search", variant, name, arguments, [task], body, expected, inputs, idea=idea, difficulty=difficulty,
        imports=["from bisect import bisect_left, bisect_right"] if "bisect" in body else (),
    )  # fmt: skip


def ordering(draw: Random, difficulty: str) -> Exercise:
    """Sorting by keys, and sorts written out."""
    k = draw.randint(2, 9)
    pairs = [([(n, draw.randint(1, 5)) for n in draw.sample(PEOPLE, 4)],) for _ in range(3)]
    lists = [(numbers(draw, 0, 30),) for _ in range(4)]
    rows: list[tuple[Any, ...]] = [
        (EASY, "remainder", f"by_remainder_{k}", "xs", f"Return the elements sorted by their remainder after division "
         "by "
         f"{k}, the larger element first among equals.", f"return sorted(xs, key=lambda x: (x % {k}, -x))",
         lambda xs: [x for r in range(k) for x in sorted(xs)[::-1] if x % k == r], lists,
         "Tuples are compared by their first part, and by the second one only where the first is equal."),
        (EASY, "scores", "best_first", "scores", f"`scores` is a list of pairs (name, points). Return the names with "
         "more "
         f"than {k // 3} points, most points first and equal ones by name.",
         f"chosen = [pair for pair in scores if pair[1] > {k // 3}]\n"
         "return [name for name, points in sorted(chosen, key=lambda pair: (-pair[1], pair[0]))]",
         lambda ps: [n for p in range(9, k // 3, -1) for n in sorted(m for m, q in ps if q == p)], pairs,
         "The minus sign turns the order of the points round, while names keep theirs."),
        (MEDIUM, "insertion", "insertion_passes", "xs", f"Sort a copy of `xs` by insertion and return it together "
         "with the "
         f"number of moves of one element by one place, plus {k}.",
         f"xs, moves = list(xs), {k}\nfor i in range(1, len(xs)):\n    while i and xs[i - 1] > xs[i]:\n"
         "        xs[i - 1], xs[i] = xs[i], xs[i - 1]\n        i -= 1\n        moves += 1\nreturn xs, moves",
         lambda xs: (sorted(xs), k + sum(a > b for a, b in combinations(xs, 2))), lists,
         "The part before `i` is sorted. Element i moves left past every greater one. The moves count the pairs that "
         "stood in the wrong order."),
        (MEDIUM, "selection", f"smallest_{k}_by_selection", "xs", f"Return the {k} smallest elements in order (all, if "
         "there are fewer), by taking the smallest of the rest again and again.",
         f"rest, chosen = list(xs), []\nwhile rest and len(chosen) < {k}:\n    smallest = min(rest)\n"
         "    rest.remove(smallest)\n    chosen.append(smallest)\nreturn chosen",
         lambda xs: sorted(xs)[:k], lists,
         "`remove` takes out one element only, so equal ones are chosen one after the other."),
        (HARD, "merge_sort", "sort_by_merging", "xs", f"Sort by merging: cut in halves, sort both in the same way, "
         "merge "
         f"them. Elements are compared by x % {k * 7}, equal ones keep their order.",
         f"if len(xs) < 2:\n    return list(xs)\nmiddle = len(xs) // 2\n"
         "left, right = sort_by_merging(xs[:middle]), sort_by_merging(xs[middle:])\nmerged = []\n"
         f"while left and right:\n    first = right if right[0] % {k * 7} < left[0] % {k * 7} else left\n"
         "    merged.append(first.pop(0))\nreturn merged + left + right",
         lambda xs: sorted(xs, key=lambda x: x % (7 * k)), lists,
         "Two sorted lists are merged by taking the smaller front. Of equal ones the left goes first, which keeps the "
         "order."),
        (HARD, "counting", f"count_sort_mod_{k}", "xs", f"Return the elements sorted by x // {k} without comparing "
         "any two: "
         "put them into buckets; equal ones keep their order.",
         f"buckets = [[] for _ in range(max(xs, default=0) // {k} + 1)]\nfor x in xs:\n    buckets[x // "
         f"{k}].append(x)\n"
         "return [x for bucket in buckets for x in bucket]",
         lambda xs: sorted(xs, key=lambda x: x // k), lists,
         "The key itself says which bucket an element belongs to; reading the buckets in order gives the sorted list."),
        (HARD, "quick", "partition_passes", "xs", f"Return the element that would stand at index len(xs) // {k} after "
         "sorting, by splitting at the first element and going on in the right part only.",
         f"place = len(xs) // {k}\nwhile True:\n    pivot = xs[0]\n    small = [x for x in xs if x < pivot]\n"
         "    equal = [x for x in xs if x == pivot]\n    if place < len(small):\n        xs = small\n"
         "    elif place < len(small) + len(equal):\n        return pivot\n    else:\n"
         "        place -= len(small) + len(equal)\n        xs = [x for x in xs if x > pivot]",
         lambda xs: sorted(xs)[len(xs) // k], lists,
         "After one split it is known in which part the wanted place lies; the others need not be sorted at all."),
    ]  # fmt: skip
    variant, name, arguments, task, body, expected, inputs, idea = draw.choice(rows_of(difficulty, rows))
    return compose(
        draw, "ordering", variant, name, arguments, [task], body, expected, inputs, idea=idea, difficulty=difficulty
    )


def dynamic(draw: Random, difficulty: str) -> Exercise:
    """Answers built from answers of smaller questions."""
    steps = sorted(draw.sample(range(1, 6), draw.randint(2, 3)))
    coins = sorted({1, *draw.sample(range(2, 14), 2)})
    capacity, thing = draw.randint(8, 16), draw.choice(THINGS)
    small = [(n,) for n in draw.sample(range(2, 14), 4)]
    lists = [(numbers(draw, -9, 12, 3, 6),) for _ in range(4)]
    loads = [([(draw.randint(1, 9), draw.randint(1, 20)) for _ in range(draw.randint(3, 4))],) for _ in range(4)]
    words = [(draw.choice(WORDS)[:5], draw.choice(WORDS)[:5]) for _ in range(4)]
    subsets = lambda xs: [c for n in range(len(xs) + 1) for c in combinations(xs, n)]  # noqa: E731

    @cache
    def ways(n: int) -> int:
        return 1 if n == 0 else sum(ways(n - s) for s in steps if s <= n)

    @cache
    def fewest(n: int) -> int:
        return 0 if n == 0 else 1 + min(fewest(n - c) for c in coins if c <= n)

    @cache
    def distance(a: str, b: str) -> int:
        if not a or not b:
            return len(a) + len(b)
        return min(distance(a[1:], b) + 1, distance(a, b[1:]) + 1, distance(a[1:], b[1:]) + (a[0] != b[0]))

    rows: list[tuple[Any, ...]] = [
        (EASY, "running_best", "largest_sum", "xs", f"Return the largest sum of neighbouring elements, at least "
         f"{capacity - 8}.",
         f"best, here = {capacity - 8}, 0\nfor x in xs:\n    here = max(x, here + x)\n    best = max(best, here)\n"
         "return best",
         lambda xs: max([capacity - 8, *(sum(xs[i:j]) for i in range(len(xs)) for j in range(i + 1, len(xs) + 1))]),
         lists,
         "The best stretch that ends here either goes on from the one that ended before, or starts anew."),
        (EASY, "climb", f"ways_by_{'_'.join(map(str, steps))}", "n", "Return in how many orders steps of "
         f"{' or '.join(map(str, steps))} stairs lead up `n` stairs.",
         f"ways = [1]\nfor stair in range(1, n + 1):\n    ways.append(sum(ways[stair - s] for s in {steps} if s <= "
         "stair))\n"
         "return ways[n]",
         lambda n: ways(n), small,
         "The last step came from a stair that is known already; the ways to all of these add up. There is one way to "
         "stay at the bottom."),
        (MEDIUM, "coins", f"fewest_coins_{'_'.join(map(str, coins))}", "amount", "Return the smallest number of coins "
         "of "
         f"{', '.join(map(str, coins))} that make `amount`.",
         f"fewest = [0]\nfor n in range(1, amount + 1):\n"
         f"    fewest.append(1 + min(fewest[n - coin] for coin in {coins} if coin <= n))\nreturn fewest[amount]",
         lambda n: fewest(n), [(n,) for n in draw.sample(range(3, 40), 4)],
         "The best way to n uses some last coin, and the rest in the best way. The coin 1 makes every amount "
         "possible. Always taking the largest coin first would not be the best for all sets of coins."),
        (MEDIUM, "rising", "longest_rising", "xs", f"Return the length of the longest rising subsequence: elements in "
         "their "
         f"order, each greater than the one before by at least {steps[0]}, anything left out between.",
         "lengths = []\nfor i, x in enumerate(xs):\n"
         f"    before = [lengths[j] for j in range(i) if xs[j] + {steps[0]} <= x]\n"
         "    lengths.append(1 + max(before, default=0))\nreturn max(lengths, default=0)",
         lambda xs: max(len(c) for c in subsets(xs) if all(a + steps[0] <= b for a, b in pairwise(c))),
         lists, "`lengths[i]` is the longest one that ends with element i: it lengthens the best earlier one that "
             "fits."),
        (HARD, "knapsack", f"most_value_in_{capacity}", "items", f"`items` is a list of pairs (weight, value) of "
         f"{thing}. Return the largest total value that weighs at most {capacity}, each taken once at most.",
         f"best = [0] * {capacity + 1}\nfor weight, value in items:\n    for room in range({capacity}, weight - 1, "
         "-1):\n"
         "        best[room] = max(best[room], best[room - weight] + value)\nreturn best[-1]",
         lambda items: max(sum(v for _, v in c) for c in subsets(items) if sum(w for w, _ in c) <= capacity), loads,
         "`best[room]` is the most value that fits into that room. Going through the rooms from large to small uses "
         "each item once only."),
        (HARD, "edit", "edit_distance", "first, second", "Return the smallest number of changes (insert, delete or "
         "replace "
         f"a letter) from one word to the other, plus {capacity}.",
         "row = list(range(len(second) + 1))\nfor i, a in enumerate(first, 1):\n    above, row = row, [i]\n"
         "    for j, b in enumerate(second, 1):\n"
         "        row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (a != b)))\n"
         f"return row[-1] + {capacity}",
         lambda a, b: capacity + distance(a, b), words,
         "Each cell stands for two beginnings of the words. It follows from its neighbours: one letter less in either, "
         "or in both. Only two rows of the table are needed."),
        (HARD, "subset", "sums_that_can_be_made", "xs", f"Return, in order, all sums from 1 to {capacity} that can be "
         "made "
         "of some of the elements, each used once at most; negative elements are left out.",
         f"reached = {{0}}\nfor x in xs:\n    if x > 0:\n        reached |= {{total + x for total in reached}}\n"
         f"return sorted(total for total in reached if 1 <= total <= {capacity})",
         lambda xs: [n for n in range(1, capacity + 1) if n in {sum(c) for c in subsets([x for x in xs if x > 0])}],
         lists, "With each element, every sum reached so far can be reached with or without it."),
    ]  # fmt: skip
    variant, name, arguments, task, body, expected, inputs, idea = draw.choice(rows_of(difficulty, rows))
    return compose(
        draw, "dynamic", variant, name, arguments, [task], body, expected, inputs, idea=idea, difficulty=difficulty
    )


def graphs(draw: Random, difficulty: str) -> Exercise:
    """Cities and roads: neighbours, reachable, shortest, in order, cheapest."""
    cities, k = draw.sample(CITIES, 5), draw.randint(1, 9)
    roads = lambda: sorted(draw.sample(list(combinations(cities, 2)), draw.randint(4, 6)))  # noqa: E731

    def routes(edges: list, start: str, end: str) -> list[tuple[str, ...]]:
        step = {(a, b) for e in edges for a, b in (e[:2], e[1::-1])}
        middle = [c for c in cities if c not in (start, end)]
        found = [(start, *m, end) for n in range(len(middle) + 1) for m in permutations(middle, n)]
        return [r for r in found if all(pair in step for pair in pairwise(r))]

    def cost(edges: list, start: str, end: str) -> int | None:
        price = {(a, b): n for x, y, n in edges for a, b in ((x, y), (y, x))}
        prices = [sum(price[p] + k for p in pairwise(r)) for r in routes(edges, start, end)]
        return min(prices, default=None)

    def reach(edges: list, start: str) -> list[str]:
        return sorted(c for c in cities if c == start or routes(edges, start, c))

    def first_order(edges: list) -> list[str]:
        names = sorted({c for e in edges for c in e})
        return list(next(p for p in permutations(names) if all(p.index(a) < p.index(b) for a, b in edges)))

    steps = lambda e, a, b: min((len(r) - 1 for r in routes(e, a, b)), default=None)  # noqa: E731
    neighbours = (
        "neighbours = {}\nfor a, b in roads:\n    neighbours.setdefault(a, []).append(b)\n"
        "    neighbours.setdefault(b, []).append(a)\n"
    )
    with_ends = [(roads(), *draw.sample(cities, 2)) for _ in range(3)]
    priced = [([(a, b, draw.randint(1, 9)) for a, b in roads()], *draw.sample(cities, 2)) for _ in range(3)]
    rows: list[tuple[Any, ...]] = [
        (EASY, "degree", "well_connected", "roads", f"`roads` is a list of pairs of cities. Return the cities with at "
         "least "
         f"{1 + k % 3} roads, by name.",
         "counts = {}\nfor road in roads:\n    for city in road:\n        counts[city] = counts.get(city, 0) + 1\n"
         f"return sorted(city for city, n in counts.items() if n >= {1 + k % 3})",
         lambda e: [c for c in sorted(cities) if sum(c in road for road in e) > k % 3], [(roads(),) for _ in range(3)],
         "Each road counts for both of its ends."),
        (MEDIUM, "reachable", "reachable", "roads, start", "`roads` is a list of pairs of cities, to be used both "
         "ways. "
         "Return all cities that can be reached from `start`, itself included, by name.",
         f"{neighbours}seen, waiting = {{start}}, [start]\nwhile waiting:\n    for city in "
         "neighbours.get(waiting.pop(), []):\n"
         "        if city not in seen:\n            seen.add(city)\n            waiting.append(city)\nreturn "
         "sorted(seen)",
         reach, [(e, a) for e, a, _ in with_ends],
         "`waiting` holds cities whose neighbours have not been looked at. A city enters it once, when it is first "
         "seen."),
        (MEDIUM, "distance", "fewest_roads", "roads, start, end", "`roads` is a list of pairs of cities, to be used "
         "both "
         "ways. Return the smallest number of roads from `start` to `end`, or None if there is no way.",
         f"{neighbours}distance, waiting = {{start: 0}}, [start]\nfor city in waiting:\n"
         "    for other in neighbours.get(city, []):\n        if other not in distance:\n"
         "            distance[other] = distance[city] + 1\n            waiting.append(other)\n"
         "return distance.get(end)", steps, with_ends,
         "Cities are visited in the order of their distance, because new ones go to the end of the list. So the first "
         "distance found is the smallest. This is breadth-first search."),
        (HARD, "cheapest", "cheapest_way", "roads, start, end", "`roads` is a list of (city, city, cost), to be used "
         "both "
         f"ways; each road costs {k} more than it says. Return the smallest cost from `start` to `end`, or None.",
         "done, waiting = set(), [(0, start)]\nwhile waiting:\n    cost, city = heapq.heappop(waiting)\n"
         "    if city == end:\n        return cost\n    if city in done:\n        continue\n    done.add(city)\n"
         "    for a, b, more in roads:\n        if city in (a, b):\n"
         f"            heapq.heappush(waiting, (cost + more + {k}, b if city == a else a))\nreturn None",
         cost, priced,
         "The heap always gives the cheapest city that is waiting, and no cheaper way to it can turn up later, as no "
         "road has a negative cost. This is Dijkstra's algorithm."),
        (HARD, "order", "first_order", "pairs", "Each pair (a, b) says that a must come before b. Return all names in "
         "an "
         "order that respects every pair; where several could be next, take the first by name.",
         "names = sorted({name for pair in pairs for name in pair})\norder = []\nwhile names:\n    for name in names:\n"
         "        if not any(b == name and a in names for a, b in pairs):\n            order.append(name)\n"
         "            names.remove(name)\n            break\nreturn order",
         first_order, [(draw.sample(list(combinations(cities, 2)), 4),) for _ in range(3)],
         "A name can be next when nothing that must come before it is still waiting. This is topological sorting."),
    ]  # fmt: skip
    variant, name, arguments, task, body, expected, inputs, idea = draw.choice(rows_of(difficulty, rows))
    return compose(
        draw, "graphs", variant, name, arguments, [task], body, expected, inputs, idea=idea, difficulty=difficulty,
        imports=["import heapq"] if "heapq" in body else (),
    )  # fmt: skip


def recursion(draw: Random, difficulty: str) -> Exercise:
    """Functions that call themselves: nested lists, choices, towers."""
    k, limit = draw.randint(2, 9), draw.randint(12, 30)
    letters = "".join(draw.sample("abcdefgh", 3))

    def nested(depth: int) -> list:
        return [
            nested(depth - 1) if depth and draw.random() < 0.45 else draw.randint(0, 9)
            for _ in range(draw.randint(2, 3))
        ]

    flat = lambda xs: [y for x in xs for y in (flat(x) if isinstance(x, list) else [x])]  # noqa: E731
    trees = [(nested(2),) for _ in range(4)]
    sizes = [(n,) for n in draw.sample(range(1, 7), 4)]
    sets = [(sorted(draw.sample(range(1, 15), draw.randint(3, 4))),) for _ in range(3)]
    rows: list[tuple[Any, ...]] = [
        (EASY, "digits", f"sum_digits_plus_{k}", "n", f"Return the sum of the digits of `n`, each raised by {k}, by "
         "calling "
         f"the function again for the number without its last digit.",
         f"if n < 10:\n    return n + {k}\nreturn sum_digits_plus_{k}(n // 10) + n % 10 + {k}",
         lambda n: sum(int(d) + k for d in str(n)), [(draw.randint(3, 30_000),) for _ in range(4)],
         "A number of one digit needs no further call. Every other one is its last digit and a shorter number."),
        (EASY, "countdown", f"countdown_by_{k}", "n", f"Return the list n, n - {k}, n - {2 * k}, ... as long as it is "
         "positive, by recursion.",
         f"if n <= 0:\n    return []\nreturn [n] + countdown_by_{k}(n - {k})",
         lambda n: list(range(n, 0, -k)), [(draw.randint(5, 50),) for _ in range(4)],
         "The empty list ends the recursion; every call puts its own number in front."),
        (MEDIUM, "flatten", "flatten", "xs", f"`xs` is a list of numbers and of such lists. Return all numbers in "
         "order, "
         f"multiplied by {k}.",
         "flat = []\nfor x in xs:\n    if isinstance(x, list):\n        flat += flatten(x)\n    else:\n"
         f"        flat.append(x * {k})\nreturn flat",
         lambda xs: [k * x for x in flat(xs)], trees,
         "An element that is a list is the same task again, only smaller."),
        (MEDIUM, "depth", "weighted_sum", "xs, depth=1", f"`xs` is a list of numbers and of such lists. Return the "
         "sum of "
         f"the numbers, each times its depth (1 outside), plus {k} for every list inside.",
         f"total = 0\nfor x in xs:\n    total += weighted_sum(x, depth + 1) + {k} if isinstance(x, list) else x * "
         "depth\n"
         "return total",
         lambda xs: _weighted(repr(xs), k), trees, "The depth travels along as an argument that grows with each call."),
        (HARD, "subsets", "choices", "xs", f"`xs` is sorted and holds different positive numbers. Return all lists of "
         "some "
         f"of them (in order) whose sum is at most {limit}, by deciding for each number; without the number comes "
         "first.",
         f"def choose(rest, chosen):\n    if sum(chosen) > {limit}:\n        return []\n    if not rest:\n        "
         "return [chosen]\n"
         "    return choose(rest[1:], chosen) + choose(rest[1:], chosen + rest[:1])\n\nreturn choose(xs, [])",
         lambda xs: [c for bits in product([0, 1], repeat=len(xs))
                     if sum(c := [x for x, b in zip(xs, bits, strict=True) if b]) <= limit], sets,
         "Each call decides about one number, and both decisions go on with the rest. What is too large already is cut "
         "off at once."),
        (HARD, "arrangements", "words_without_pairs", "n", f"Return all words of `n` letters of '{letters}' in which "
         "no "
         "letter follows itself, in the order of the letters as given.",
         f"if n == 0:\n    return ['']\nshorter = words_without_pairs(n - 1)\n"
         f"return [letter + word for letter in {letters!r} for word in shorter if word[:1] != letter]",
         lambda n: ["".join(w) for w in product(letters, repeat=n) if all(a != b for a, b in pairwise(w))],
         [(n,) for n in (0, 1, 2, 3)],
         "A longer word is a letter before a shorter one that does not begin with it."),
        (HARD, "towers", "moves", "n, source='A', target='C', spare='B'", "Return the moves (from, to) that bring `n` "
         "discs "
         f"from one peg to another, one at a time, never a larger one on a smaller one; only every {k}th move, counted "
         "from the first, is wanted of the outermost call.",
         "def bring(n, source, target, spare):\n    if n == 0:\n        return []\n"
         "    return bring(n - 1, source, spare, target) + [(source, target)] + bring(n - 1, spare, target, source)\n\n"
         f"return bring(n, source, target, spare)[::{k}]",
         lambda n: _towers(n)[::k], sizes,
         "The largest disc can move only when all smaller ones are on the spare peg, which is the same task with one "
         "disc less."),
    ]  # fmt: skip
    variant, name, arguments, task, body, expected, inputs, idea = draw.choice(rows_of(difficulty, rows))
    return compose(
        draw, "recursion", variant, name, arguments, [task], body, expected, inputs, idea=idea, difficulty=difficulty
    )


def _weighted(text: str, more: int) -> int:
    """The weighted sum of a nested list of digits, read from its printed form."""
    depth = total = 0
    for c in text:
        depth += (c == "[") - (c == "]")
        total += more if c == "[" and depth > 1 else int(c) * depth if c.isdigit() else 0
    return total


def _towers(n: int) -> list[tuple[str, str]]:
    """By the rule for each move: the smallest disc goes round in every other move, else the only legal move is made."""
    order = "ACB" if n % 2 else "ABC"
    pegs: dict[str, list[int]] = {"A": list(range(n, 0, -1)), "B": [], "C": []}
    found: list[tuple[str, str]] = []
    while len(pegs["C"]) < n:
        small = next(p for p in order if pegs[p][-1:] == [1])
        if len(found) % 2 == 0:
            source, target = small, order[(order.index(small) + 1) % 3]
        else:
            a, b = (p for p in "ABC" if p != small)
            source, target = (a, b) if pegs[a] and (not pegs[b] or pegs[a][-1] < pegs[b][-1]) else (b, a)
        pegs[target].append(pegs[source].pop())
        found.append((source, target))
    return found
