"""A store held against a plain dict, whatever is done to it in whatever order."""

import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from hypothesis.strategies import DataObject, SearchStrategy

from imgstore import Reader
from imgstore.errors import ImageNotFoundError, InvalidArgumentError, StoreNotFoundError, StoreReplacedError
from imgstore.tests import strategies
from imgstore.tests.checks import Record, read_back, record, refused


@dataclass
class Held:
    """A reader that is kept open, and what may come back at each id."""

    reader: Reader
    allowed: dict[int, list[Record]]  # what was there, or a single that took the place of one that was
    singles: frozenset[int]
    generation: int


class Machine(RuleBasedStateMachine):
    readers: Bundle[Held] = Bundle("readers")

    backend: ClassVar[ModuleType]

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.root = Path(self.folder.name, "a", "store")
        self.model: dict[int, Record] = {}
        self.singles: set[int] = set()
        self.generation = 0  # 0 where there is no store
        self.held: list[Held] = []

    def teardown(self) -> None:
        for held in self.held:
            held.reader.close()
        self.folder.cleanup()

    @rule(data=st.data(), as_iterator=st.booleans(), durable=st.booleans())
    def store_many(self, data: DataObject, as_iterator: bool, durable: bool) -> None:
        images = data.draw(strategies.many(self.backend))
        labels = data.draw(st.lists(strategies.labels, min_size=len(images), max_size=len(images)))
        self.backend.store_many(self.root, iter(images) if as_iterator else images, labels, durable=durable)
        self.model = dict(enumerate(map(record, images, labels)))
        self.singles = set()
        self.generation += 1

    @rule(data=st.data(), label=strategies.labels, durable=st.booleans())
    def store_single(self, data: DataObject, label: int, durable: bool) -> None:
        image_id = data.draw(self.any_id())
        image = data.draw(strategies.images(self.backend))
        self.backend.store_single(self.root, image, image_id, label, durable=durable)
        self.model[image_id] = record(image, label)
        self.singles.add(image_id)
        self.generation = max(self.generation, 1)
        for held in self.held:
            if held.generation == self.generation and image_id in held.singles:
                held.allowed[image_id].append(self.model[image_id])

    @rule(data=st.data(), verify=st.booleans())
    def read_single(self, data: DataObject, verify: bool) -> None:
        image_id = data.draw(self.any_id())
        if image_id in self.model:
            image, label = self.backend.read_single(self.root, image_id, verify=verify)
            assert read_back([image], [label]) == [self.model[image_id]]
        else:
            with pytest.raises(ImageNotFoundError if self.generation else StoreNotFoundError):
                self.backend.read_single(self.root, image_id, verify=verify)

    @precondition(lambda self: self.model)
    @rule(data=st.data(), verify=st.booleans())
    def read_many(self, data: DataObject, verify: bool) -> None:
        ids = data.draw(st.lists(st.sampled_from(sorted(self.model))))
        assert read_back(*self.backend.read_many(self.root, ids, verify=verify)) == [self.model[i] for i in ids]

    @precondition(lambda self: self.generation)
    @rule(target=readers, verify=st.booleans())
    def open_reader(self, verify: bool) -> Held:
        allowed = {image_id: [self.model[image_id]] for image_id in sorted(self.model)}
        reader = self.backend.open_reader(self.root, verify=verify)
        self.held.append(Held(reader, allowed, frozenset(self.singles), self.generation))
        return self.held[-1]

    @rule(held=readers)
    def read_all_of_a_reader(self, held: Held) -> None:
        assert held.reader.ids.tolist() == list(held.allowed)
        self.check(held, held.allowed, lambda: [record(*pair) for pair in held.reader])
        self.check(held, held.allowed, lambda: read_back(*held.reader.read_many()))

    @rule(data=st.data(), held=readers)
    def read_some_of_a_reader(self, data: DataObject, held: Held) -> None:
        ids = data.draw(st.lists(st.sampled_from(list(held.allowed)))) if held.allowed else []
        positions = [list(held.allowed).index(image_id) for image_id in ids]
        self.check(held, ids, lambda: read_back(*held.reader.read_many(ids)))
        self.check(held, ids, lambda: [record(*held.reader[position]) for position in positions])

    @rule(target=readers, held=readers)
    def pickle_a_reader(self, held: Held) -> Held | MultipleResults[Held]:
        pickled = pickle.dumps(held.reader)
        if held.generation != self.generation:
            with pytest.raises(StoreReplacedError):
                pickle.loads(pickled)
            return multiple()
        self.held.append(replace(held, reader=pickle.loads(pickled)))
        return self.held[-1]

    @rule(held=consumes(readers))
    def close_a_reader(self, held: Held) -> None:
        held.reader.close()
        self.held.remove(held)

    @precondition(lambda self: self.generation)
    @rule(data=st.data(), given_before=st.integers(0, 4))
    def fail(self, data: DataObject, given_before: int) -> None:
        image = data.draw(strategies.images(self.backend))
        with refused(self.root, InvalidArgumentError, "labels: "):
            self.backend.store_many(self.root, iter([image] * given_before), range(5))
        with refused(self.root, InvalidArgumentError, "label: "):
            self.backend.store_single(self.root, image, 0, 2**63)

    @invariant()
    def holds_what_the_dict_holds(self) -> None:
        if self.generation:
            self.backend.verify(self.root)
            assert read_back(*self.backend.read_many(self.root)) == [self.model[i] for i in sorted(self.model)]
            assert len(list(self.root.iterdir())) == len({"LOCK", "CURRENT", "the generation"})

    def any_id(self) -> SearchStrategy[int]:
        return strategies.ids | st.sampled_from([*sorted(self.model), 0])

    def check(self, held: Held, ids: Iterable[int], read: Callable[[], list[Record]]) -> None:
        """What the reader gives is allowed; once the store was replaced, it may say so instead."""
        try:
            got = read()
        except StoreReplacedError:
            assert held.generation != self.generation
        else:
            assert all(one in held.allowed[image_id] for one, image_id in zip(got, ids, strict=True))


def test_a_store_is_a_dict(backend: ModuleType) -> None:
    class Store(Machine):
        pass

    Store.backend = backend
    run_state_machine_as_test(Store, settings=settings(max_examples=20, stateful_step_count=40))
