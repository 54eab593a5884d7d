"""The questions of the tasks beside this file: made here, so that no file has to be fetched."""

import datasets

NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November"]
ENDS = [
    ("She opened the door with a", "key", ["cloud", "spoon", "river"]),
    ("He was thirsty, so he drank a glass of", "water", ["sand", "paper", "wood"]),
    ("It was raining, so she took her", "umbrella", ["piano", "ladder", "candle"]),
    ("The baker sells fresh", "bread", ["tyres", "stones", "lamps"]),
    ("At night the sky is full of", "stars", ["shoes", "spoons", "doors"]),
    ("The cat chased the", "mouse", ["house", "moon", "law"]),
    ("You can read it in the", "book", ["soup", "stone", "rain"]),
    ("In winter the lake turns to", "ice", ["gold", "bread", "fire"]),
    ("The doctor works in a", "hospital", ["bottle", "pocket", "letter"]),
    ("The children went to", "school", ["yesterday", "blue", "seven"]),
    ("He wrote the letter with a", "pen", ["cow", "hill", "wave"]),
    ("The farmer milked the", "cow", ["chair", "window", "song"]),
    ("Birds build their", "nests", ["trains", "books", "shirts"]),
    ("She put on her shoes and", "left", ["green", "under", "very"]),
    ("The ship sailed across the", "ocean", ["kitchen", "sentence", "candle"]),
    ("He lit a fire to keep", "warm", ["paper", "late", "loud"]),
]
LAST = [
    "The dog ran after the ball and the ball rolled away from the dog",
    "Anna gave Tom an apple, and Tom thanked Anna",
    "The red car stood beside the blue car until the owner drove away the red car",
    "First they built the wall, then they painted the wall",
    "The teacher asked a question, and nobody could answer the question",
    "He bought a ticket at the station and lost the ticket",
    "The river is wide here, and no bridge crosses the river",
    "She planted a tree in the garden and every day she watered the tree",
    "The king had a crown, and everybody wanted to see the crown",
    "We waited for the train for an hour, and then we saw the train",
    "The bird sat in its nest, and the cat looked up at the nest",
    "They cooked a soup of beans, and in the evening they ate the soup",
]
TEXTS = [
    "The sun rises in the east and sets in the west. At noon it stands high in the sky, and the shadows are short.",
    "Water boils when it is heated, and it freezes when it is cold. Ice floats on water because it is lighter.",
    "A library is a place where books are kept. People come to read them there or to take them home for a while.",
    "To make bread you need flour, water, salt and yeast. The dough has to rest before it goes into the oven.",
    "The heart pumps blood through the body. The blood carries oxygen from the lungs to every part of it.",
    "A computer follows a list of instructions. It does exactly what they say, which is not always what was meant.",
    "In autumn the leaves of many trees turn yellow and red before they fall to the ground.",
    "A map shows where things are. North is usually at the top, and a scale tells how far apart places lie.",
]


def _rows(rows: list[dict]) -> dict:
    return {"test": datasets.Dataset.from_list(rows)}


def ends(**_) -> dict:
    """A sentence without its last word, and four words that might end it; the place of the right one goes round."""
    rows = []
    for n, (text, right, wrong) in enumerate(ENDS):
        choices = list(wrong)
        choices.insert(n % 4, right)
        rows.append({"text": text, "choices": choices, "answer": n % 4})
    return _rows(rows)


def orders(**_) -> dict:
    """Three words that follow one another, and what may come next."""
    rows = []
    for words in (NUMBERS, DAYS, MONTHS):
        for n in range(len(words) - 3):
            wrong = [word for word in words if word not in words[n : n + 4]][:3]
            choices = list(wrong)
            choices.insert(n % (len(wrong) + 1), words[n + 3])
            rows.append({"text": ", ".join(words[n : n + 3]), "choices": choices, "answer": n % (len(wrong) + 1)})
    return _rows(rows)


def last_words(**_) -> dict:
    """A text whose last word has stood in it before."""
    rows = [text.rpartition(" ") for text in LAST]
    return _rows([{"text": start, "last": word} for start, _, word in rows])


def texts(**_) -> dict:
    return _rows([{"text": text} for text in TEXTS])


def copies(**_) -> dict:
    """Words that are to be written once more."""
    words = [*NUMBERS, *DAYS]
    return _rows([{"words": f"{words[n]} {words[n + 5]} {words[n + 2]}"} for n in range(len(words) - 5)])
