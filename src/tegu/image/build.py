"""From a lock to images: fetch, unpack, configure, lay, make disks; each step only when needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tegu.definition import Definition, section_digests
from tegu.errors import BuildError
from tegu.image.assemble import KIND as IMAGES
from tegu.image.assemble import Assembled, assemble, generated_files, open_assembled
from tegu.image.configured import KIND as SYSTEMS
from tegu.image.configured import Configured, make_configured, open_configured
from tegu.image.incremental import Refused, extend, nearest
from tegu.image.manifest import manifest
from tegu.image.rot import DamagedError, check_packages, drop_damaged, find_rot
from tegu.image.sandbox import sandbox
from tegu.image.steps import Log, Step, engine_digest, key_of
from tegu.image.tools import locked_tools, tools_key
from tegu.image.trees import KIND as TREES
from tegu.image.trees import Tree, all_trees, from_scratch, open_tree
from tegu.image.unpack import KIND as PACKAGES
from tegu.image.unpack import unpack_missing
from tegu.linux import run_isolated
from tegu.packages import Lock, LockedPackage, fetch_all, provide_local
from tegu.process import CommandError
from tegu.store import Store

__all__ = ["BuildOptions", "Built", "build"]

Event = tuple[str, Any]


@dataclass(frozen=True)
class BuildOptions:
    """`reuse_trees`: start from cached trees; `reuse_images`: hand out an image made before."""

    reuse_trees: bool = True
    reuse_images: bool = True


@dataclass(frozen=True)
class Built:
    """What a build made: the images, the finished tree's digest, and the steps taken."""

    definition: Definition
    lock: Lock
    images: Assembled
    tree_digest: str
    steps: tuple[Step, ...]


@dataclass
class _Task:
    """One build inside the namespaces."""

    store: Store
    definition: Definition
    lock: Lock
    sections: dict[str, str]
    options: BuildOptions
    log: Log
    engine: str = field(default_factory=engine_digest)
    unpacked: frozenset[str] = frozenset()

    def run(self, subject: str, report: Callable[[Event], None]) -> tuple[Any, ...]:
        self.log = Log.open(self.store, subject, lambda name: report(("step", name)))
        tree = self.tree()
        system, mounted = self.system(tree)
        images = self.images(system, verified=mounted)
        self.log.save()
        return images, system.digest, tuple(self.log.steps)

    # Steps

    def tree(self) -> Tree:
        packages = self.lock.system
        made_of = {p.name: p.sha256 for p in packages}
        inputs = {
            **{f"{p.name} {p.version}": p.sha256 for p in packages},
            "tegu itself": self.engine,
            "date of the lock": str(self.lock.timestamp),
        }
        key = key_of({**made_of, "engine": self.engine, "date": str(self.lock.timestamp)})
        with self.log.step("tree", key, inputs) as step:
            kept = open_tree(self.store, key) if self.options.reuse_trees else None
            if kept is not None:
                step.outcome = "kept"
                return kept
            return self._new_tree(key, packages, step)

    def _new_tree(self, key: str, packages: tuple[LockedPackage, ...], step: Any) -> Tree:
        self.unpacked = frozenset(unpack_missing(self.store, packages, tools=self.lock.tools))
        facts = {
            "engine": self.engine,
            "architecture": self.lock.architecture,
            "timestamp": self.lock.timestamp,
        }
        if not self.options.reuse_trees:
            self.store.drop_tree(TREES, key)
            step.reason = "asked to build from scratch"
        else:
            delta = nearest(all_trees(self.store), packages, **facts)  # type: ignore[arg-type]
            if delta is not None:
                try:
                    with self.store.scratch() as scratch:
                        tree = extend(self.store, key, delta, packages, scratch)
                    step.outcome, step.reason = "incremental", delta.words()
                    return tree
                except Refused as refused:
                    step.reason = f"{delta.words()}, but not on top: {refused}"
        try:
            with self.store.scratch() as scratch:
                return from_scratch(self.store, key, packages, scratch, **facts)  # type: ignore[arg-type]
        except (BuildError, CommandError):
            # A rotten file can make anything fail: tell that apart from a real failure.
            check_packages(self.store, packages)
            raise

    def system(self, tree: Tree) -> tuple[Configured, bool]:
        """Return the finished tree, and whether it was read through just now."""
        generated = generated_files(self.definition, self.lock)
        inputs = {"packages": tree.key, "definition": self.sections["tree"]}
        inputs |= {f"/{name}": key_of({name: text}) for name, text in generated.items()}
        inputs["tegu itself"] = self.engine
        key = key_of(inputs)
        with self.log.step("system", key, inputs) as step:
            kept = open_configured(self.store, key) if self.options.reuse_trees else None
            if kept is not None:
                step.outcome = "kept"
                return kept, False
            if not self.options.reuse_trees:
                self.store.drop_tree(SYSTEMS, key)
            with self.store.scratch() as scratch:
                made = make_configured(
                    self.store,
                    key,
                    tree,
                    self.definition,
                    self.lock,
                    scratch,
                    generated=generated,
                    fresh=self.unpacked,
                )
            rotten = find_rot(self.store, self.lock.system, tree, made)
            if rotten:
                raise DamagedError.of(rotten)
            return made, True

    def images(self, system: Configured, *, verified: bool) -> Assembled:
        tools = self.lock.tools
        inputs = {
            "tree": system.digest,
            "definition": self.sections["image"],
            "tools": tools_key(tools),
            "tegu itself": self.engine,
        }
        key = key_of(inputs)
        with self.log.step("images", key, inputs) as step:
            kept = open_assembled(self.store, key) if self.options.reuse_images else None
            if kept is not None:
                step.outcome = "kept"
                return kept
            self.store.drop_tree(IMAGES, key)
            with (
                self.store.scratch() as scratch,
                locked_tools(self.store, tools, scratch, timestamp=self.lock.timestamp) as programs,
                self._mounted(system, scratch) as root,
            ):
                if not verified:
                    self._check(system, root)
                return assemble(
                    self.store,
                    key,
                    root,
                    self.definition,
                    self.lock,
                    programs,
                    scratch,
                    tree_digest=system.digest,
                )

    @contextmanager
    def _mounted(self, system: Configured, scratch: Path) -> Iterator[Path]:
        area = scratch / "system"
        area.mkdir()
        layers = system.directories(self.store)
        with sandbox(layers, area, upper=None, timestamp=self.lock.timestamp, devices=False) as box:
            yield box.root

    def _check(self, system: Configured, root: Path) -> None:
        """Read a kept tree through before an image is made of it."""
        from tegu.image.manifest import tree_digest

        if tree_digest(manifest(root)) == system.digest:
            return
        check_packages(self.store, self.lock.system)
        self.store.drop_tree(SYSTEMS, system.key)
        raise DamagedError.of([])


def build(
    definition: Definition,
    lock: Lock,
    store: Store,
    *,
    subject: str,
    options: BuildOptions = BuildOptions(),
    on_event: Callable[[Event], None] = lambda _: None,
) -> Built:
    """Build everything that `definition` asks for from `lock`; images stay in the store.

    `subject` names the definition in the store's history (its path): reasons for running a step
    are told against the last build of the same subject. What the store has lost or let rot is
    fetched and made again.
    """
    sections = section_digests(definition)
    for attempt in (1, 2, 3):
        _fetch(definition, lock, store, on_event)
        task = _Task(store, definition, lock, sections, options, Log(store, subject))
        try:
            images, digest, steps = run_isolated(
                lambda report: task.run(subject, report),  # noqa: B023 - called before the next turn
                on_event=on_event,
            )
        except DamagedError as e:
            if attempt == 3:
                raise
            on_event(("note", f"{e.message}; made again"))
            damaged = e.packages
            run_isolated(lambda _: drop_damaged(store, damaged))  # noqa: B023 - called at once
            continue
        except BaseException:
            run_isolated(lambda _: store.sweep())
            raise
        return Built(definition, lock, images, digest, steps)
    raise AssertionError("unreachable")


def _fetch(
    definition: Definition, lock: Lock, store: Store, on_event: Callable[[Event], None]
) -> None:
    """Download what is neither unpacked nor here as a .deb."""
    wanted = [
        p
        for p in {p.sha256: p for p in (*lock.system, *lock.tools)}.values()
        if store.tree(PACKAGES, p.sha256) is None and store.blob(p.sha256) is None
    ]
    if wanted:
        on_event(("step", f"fetch {len(wanted)} packages"))
        provide_local(definition, lock, store)
        fetch_all(wanted, lock, store)
