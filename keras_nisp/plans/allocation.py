"""Widths by damage: which groups lose channels, so that the outputs lose least."""

from collections.abc import Callable

import numpy as np

from keras_nisp.damage.network import DamagedNetwork
from keras_nisp.damage.table import AddedDamages
from keras_nisp.io.progress import Progress
from keras_nisp.plans.allocation_history import AllocationHistory
from keras_nisp.plans.solver import Solver, Steps

ROUNDS = 8  # damages are taken again around what was reached so far
PARTS = 16  # into which a group is divided: a round removes some of them
SIZES = (1, 2, 4)  # how many of these parts a group may lose in a round
RENEWED = 3  # rounds after which kernels are fitted to what they read by then
MEASURED = 6  # groups whose damage is measured in a round, if it is to be
SMALLEST = 1e-9  # damage: what costs nothing is ordered by what it saves


class Allocation:
    """Removes channels where the damage to the outputs is smallest for what is saved.

    In rounds: what each group's next channels would do to the outputs, and to the true cost of the
    network, is taken around the network that was reached so far, since damages do not add up.
    Which channels of a group go is said by their scores.

    Args:
        network: the traced model, or a table of it, which tells damages.
        measured: whether the most promising of the predicted damages are measured.
        verbose: 1 shows a progress bar.

    Attributes:
        history: the damages by which the last widths were chosen.
    """

    def __init__(
        self, network: DamagedNetwork | AddedDamages, measured: bool = False, verbose: int = 0
    ):
        self.network, self.measured, self.verbose = network, measured, verbose
        self.history: AllocationHistory | None = None

    def __call__(self, solver: Solver, steps: list[Steps], cost: Callable, target: float):
        """The units to remove, as indices.

        Args:
            solver: knows what is removed already.
            steps: in which each group may lose channels.
            cost: of the network without the units of a boolean array.
            target: what it may be at most; it can be reached.
        """
        search = _Search(self, solver, steps, cost, target)
        progress, first = Progress(100, self.verbose, "Choosing widths", "percent"), search.cost_now
        while search.cost_now > target:
            search.round(max(ROUNDS - search.rounds, 1))
            progress.update(int(100 * (first - search.cost_now) / (first - target)))
        search.give_back()
        search.note()
        self.history = search.history
        return np.flatnonzero(search.removed)


class _Search:
    """One run of the allocation: how much of each group is gone."""

    def __init__(self, allocation: Allocation, solver, steps, cost: Callable, target: float):
        self.network, self.measured = allocation.network, allocation.measured
        self.cost, self.target = cost, target
        self.steps = steps
        self.channel_map = solver.channel_map
        self.units = [len(group.units) for group in solver.channel_map.groups]
        self.done = [int(np.sum(steps.priority == -np.inf)) for steps in self.steps]
        self.removed = solver.removed.copy()
        self.least = list(self.done)  # what is removed already stays so
        self.taken: list[int] = []  # groups, the last one last
        self.cost_now, self.rounds = cost(self.removed), 0
        self.whole = cost(np.zeros_like(self.removed))
        seen = self.network.seen
        self.history = AllocationHistory(self.units)
        self.blind = [not seen[group.units].any() for group in solver.channel_map.groups]

    def without(self, group: int, done: int) -> np.ndarray:
        """What is removed if so many steps of a group are done."""
        steps, removed = self.steps[group], self.removed.copy()
        end = int(steps.sizes[:done].sum())
        removed[steps.units[:end]], removed[steps.units[end:]] = True, False
        return self.channel_map.products.gone(removed)

    def round(self, rounds_left: int) -> None:
        """Removes a share of what is still to be saved."""
        self.note()
        self.rounds += 1
        if self.rounds % RENEWED == 0:
            self.network.renew(~self.removed)
        moves = self._moves()
        removed = [self.without(*move) for move in moves]
        saved = np.array([self.cost_now - self.cost(other) for other in removed])
        damages = self.network.predict(~self.removed, [~other for other in removed])
        if self.measured:
            moves, saved, damages = self._measure(moves, removed, saved, damages)
        widths = [self._width(*move) for move in moves]
        self.history.look([group for group, _ in moves], widths, damages)
        price = np.maximum(damages, SMALLEST) / np.where(saved > 0, saved, np.nan)
        goal = self.cost_now - (self.cost_now - self.target) / rounds_left
        moved: set[int] = set()
        for index in np.argsort(price):  # NaN last: what saves nothing
            group, done = moves[index]
            if group in moved:
                continue
            moved.add(group)
            self._take(group, done)
            if self.cost_now <= goal or self.cost_now <= self.target:
                break
        self._take_unseen()

    def note(self) -> None:
        """Notes what was reached."""
        kept = [self._width(group, done) for group, done in enumerate(self.done)]
        self.history.reach(self.cost_now / self.whole, kept)

    def _width(self, group: int, done: int) -> int:
        """Channels that a group keeps if so many of its steps are done."""
        return self.units[group] - int(self.steps[group].sizes[:done].sum())

    def _moves(self) -> list[tuple[int, int]]:
        """Groups, and how many of their steps would be done next."""
        moves, last = [], [len(steps.sizes) for steps in self.steps]
        unfinished = [g for g, steps in enumerate(self.done) if steps < last[g]]
        # Damages that are not seen would come first: they wait until nothing else is left to take.
        seen = [group for group in unfinished if not self.blind[group]]
        for group in seen or unfinished:
            steps = self.steps[group]
            gone = steps.sizes[: self.done[group]].sum()
            ends = np.cumsum(steps.sizes)
            wanted = [gone + size * max(1, round(self.units[group] / PARTS)) for size in SIZES]
            reached = np.searchsorted(ends, wanted, side="right")
            reached = np.clip(np.maximum(reached, self.done[group] + 1), None, len(ends))
            moves += [(group, int(n)) for n in np.unique(reached) if n > self.done[group]]
        return moves

    def _measure(self, moves, removed, saved, damages):
        """The most promising move of each of some groups, with its measured damage."""
        price = np.maximum(damages, SMALLEST) / np.where(saved > 0, saved, np.nan)
        chosen: dict[int, int] = {}
        for index in np.argsort(price):
            chosen.setdefault(moves[index][0], int(index))
        indices = list(chosen.values())[:MEASURED]
        present = self.network.measure(~self.removed)
        measured = [self.network.measure(~removed[i]) - present for i in indices]
        return [moves[i] for i in indices], saved[indices], np.array(measured)

    def _take(self, group: int, done: int) -> None:
        """Does steps of a group, no more of them than the target needs."""
        first, last = self.done[group] + 1, done
        while first < last:
            middle = (first + last) // 2
            if self.cost(self.without(group, middle)) <= self.target:
                last = middle
            else:
                first = middle + 1
        self._set(group, last)
        self.taken.append(group)

    def _set(self, group: int, done: int) -> None:
        self.removed = self.without(group, done)
        self.done[group], self.cost_now = done, self.cost(self.removed)

    def give_back(self) -> None:
        """Undoes steps that the target does not need, of the groups that were taken last first:
        the last step may have saved more than was still to be saved."""
        for group in reversed(self.taken):
            while self.done[group] > self.least[group]:
                if self.cost(self.without(group, self.done[group] - 1)) > self.target:
                    break
                self._set(group, self.done[group] - 1)

    def _take_unseen(self) -> None:
        """Groups whose damage is not seen (key channels) lose the mean share of the others."""
        open_ = [i for i, s in enumerate(self.steps) if len(s.sizes) and not self.blind[i]]
        if not any(self.blind) or not open_:
            return
        share = sum(self.removed[self.steps[i].units].sum() for i in open_)
        share /= sum(self.units[i] for i in open_)
        for group, blind in enumerate(self.blind):
            wanted = int(np.sum(self.steps[group].priority < share)) if blind else 0
            if wanted > self.done[group]:
                self._take(group, wanted)
