"""Names, words and numbers that templates draw from."""

from random import Random

WORDS = (
    "river", "stone", "garden", "window", "paper", "morning", "silver", "market", "forest", "bridge", "letter",
    "engine", "candle", "harbor", "pencil", "orange", "violet", "basket", "ladder", "mirror", "planet", "rocket",
    "summer", "winter", "teapot", "cotton", "marble", "island", "desert", "meadow", "copper", "signal", "tunnel",
    "anchor", "button", "castle", "feather", "granite", "honey", "kettle", "lantern", "needle", "oven", "pepper",
)  # fmt: skip
PEOPLE = (
    "Ana", "Ben", "Chloe", "David", "Emma", "Farid", "Grace", "Hugo", "Iris", "Jonas", "Lena", "Mei", "Noah", "Olga",
    "Priya", "Quentin", "Rosa", "Samir", "Tara", "Umar", "Vera", "Wen", "Yusuf", "Zoe",
)  # fmt: skip
THINGS = (
    "apples", "notebooks", "tickets", "candles", "pencils", "bottles", "stamps", "marbles", "books", "cups", "chairs",
    "lamps", "plants", "shirts", "spoons", "bricks",
)  # fmt: skip
CITIES = ("Oslo", "Lima", "Cairo", "Kyoto", "Turin", "Quito", "Accra", "Perth", "Riga", "Dakar", "Lyon", "Hanoi")


def numbers(draw: Random, low: int = -40, high: int = 99, least: int = 4, most: int = 9) -> list[int]:
    return [draw.randint(low, high) for _ in range(draw.randint(least, most))]


def sentence(draw: Random, least: int = 3, most: int = 7) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(least, most)))
