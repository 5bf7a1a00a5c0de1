"""Wrong answers are found evenly over the templates, with no more questions than it takes."""

from __future__ import annotations

from collections import Counter

from lit_llada.evaluation.exact_match import Question, Reply
from lit_llada.evaluation.wrong_answers import Found, asker, find_wrong

EASY, HARD = 200, 200
# One in ten of the easy ones is answered wrongly, and all that are hard.
QUESTIONS = [Question([i], "right", 6, str(i), "easy" if i < EASY else "hard") for i in range(EASY + HARD)]


class Net:
    """Its answers depend on the number of the question alone; remembers who was asked."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, numbers: list[int]) -> dict[int, list[Reply]]:
        self.asked += numbers
        return {n: [Reply("right", True), self.second(n), Reply(f"wrong {n}", n % 20 != 0)] for n in reversed(numbers)}

    def second(self, n: int) -> Reply:
        return Reply("right", True)


class Better(Net):
    def __call__(self, numbers: list[int]) -> dict[int, list[Reply]]:
        return {
            n: said if n >= EASY or n % 10 == 3 else [Reply("right", True)] * 3
            for n, said in super().__call__(numbers).items()
        }


def find(net: Net, size: int, limit: int = 400, seed: int = 1, unended: bool = False) -> Found:
    return find_wrong(QUESTIONS, net, size, limit, seed, lambda reply: reply.ended or unended)


def kinds(found: Found) -> Counter[str]:
    return Counter(QUESTIONS[number].task for number, _ in found.pairs)


def test_as_many_of_each_template_and_hardly_more_questions_than_needed() -> None:
    net = Better()
    found = find(net, 20)
    assert kinds(found) == {"easy": 10, "hard": 10}
    assert [QUESTIONS[number].task for number, _ in found.pairs] == ["easy", "hard"] * 10
    assert all(text == f"wrong {number}" for number, text in found.pairs)
    assert len(set(net.asked)) == len(net.asked)
    asked = Counter(QUESTIONS[number].task for number in net.asked)
    assert asked["hard"] <= 14 and 60 <= asked["easy"] <= 200
    count = found.counts["hard"]
    assert count["prompts"] == asked["hard"] and count["kept"] == 10
    assert count["drawn"] == 3 * count["prompts"] == count["right"] + count["wrong"] + count["unended"]


def test_a_template_that_runs_dry_leaves_its_share_to_the_others() -> None:
    assert kinds(find(Better(), 100)) == {"easy": 20, "hard": 80}
    assert kinds(find(Better(), 1000)) == {"easy": 20, "hard": 190}  # one in twenty has no end
    assert kinds(find(Better(), 1000, unended=True)) == {"easy": 20, "hard": 200}


def test_no_more_prompts_than_the_limit() -> None:
    net = Better()
    found = find(net, 1000, limit=40)
    assert Counter(QUESTIONS[number].task for number in net.asked) == {"easy": 20, "hard": 20}
    assert sum(count["kept"] for count in found.counts.values()) == len(found.pairs)


def test_the_same_seed_finds_the_same() -> None:
    assert find(Better(), 30) == find(Better(), 30) != find(Better(), 30, seed=2)


def test_a_net_that_knows_everything_gives_nothing() -> None:
    def ask(numbers: list[int]) -> dict[int, list[Reply]]:
        return {n: [Reply("right", True)] for n in numbers}

    found = find_wrong(QUESTIONS, ask, 10, 60, 1, lambda reply: True)
    assert found.pairs == [] and found.counts["easy"]["right"] == found.counts["easy"]["prompts"] == 30


def test_the_noise_of_a_sample_is_its_own() -> None:
    told: dict[int, str] = {}

    def answer(some: list[Question], seeds: list[int]) -> list[tuple[int, Reply]]:
        for question, seed in zip(some, seeds, strict=True):
            assert told.setdefault(seed, question.prompt) == question.prompt
        return [(i, Reply(f"{q.prompt} {s}", True)) for i, (q, s) in enumerate(zip(some, seeds, strict=True))][::-1]

    all_, some = asker(QUESTIONS, answer, 3, seed=7)([2, 0, 1]), asker(QUESTIONS, answer, 2, seed=7)([1])
    assert len(told) == 9 and all_[1][:2] == some[1] and all_[0][0].text.startswith("0 ")
    assert asker(QUESTIONS, answer, 1, seed=8)([1])[1][0] not in all_[1]


def test_mixed_prompts_were_answered_right_too() -> None:
    class Stuck(Net):
        """Never right on what is hard."""

        def __call__(self, numbers: list[int]) -> dict[int, list[Reply]]:
            said = super().__call__(numbers)
            return {n: [Reply("wrong", True)] * 3 if n >= EASY else some for n, some in said.items()}

    def usable(reply: Reply) -> bool:
        return reply.ended

    every, mixed = (find_wrong(QUESTIONS, Stuck(), 1000, 400, 1, usable, only) for only in (False, True))
    assert kinds(every) == {"easy": 190, "hard": 200} and kinds(mixed) == {"easy": 190}
    assert mixed.counts["hard"]["kept"] == 0 and mixed.counts["hard"]["wrong"] == 600
