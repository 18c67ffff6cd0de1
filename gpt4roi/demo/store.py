"""Session store: the sessions of all users, isolated from each other, bounded in number, expired when idle."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from gpt4roi.demo.session import Session


class _Entry(NamedTuple):
    """A session; until: the clock's time when it expires unless it is used; left: its page was closed."""

    session: Session
    until: float
    left: bool = False


class SessionStore:
    """Holds at most max_sessions sessions by an unguessable key; a new one evicts the one that was idle longest.

    A session that was not used for idle_seconds, or whose page was left grace_seconds ago and did not come back, is
    dropped by `sweep`, which `start_sweeper` calls every minute. A page that lost its network for a moment has left
    too. While an answer is written for a page that is open, its session is in use.
    """

    def __init__(
        self,
        make: Callable[[], Session],
        max_sessions: int = 64,
        idle_seconds: float = 1800,
        grace_seconds: float = 300,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.max_sessions, self.idle_seconds, self.grace_seconds = max_sessions, idle_seconds, grace_seconds
        self._make, self._clock = make, clock
        self.on_drop: Callable[[str], object] = lambda key: None
        """Called with the key of a dropped session, so that others may forget it too.

        The store is locked meanwhile: no new session has that key yet. It must be quick and leave the store alone.
        """
        self._lock = threading.Lock()
        self._sessions: OrderedDict[str, _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    def get(self, key: str) -> Session:
        """Returns the session of a key, a new one where there is none."""
        with self._lock:
            entry = self._sessions.pop(key, None)
            session = entry.session if entry else self._make()
            oldest = list(self._sessions)[: max(len(self._sessions) + 1 - self.max_sessions, 0)]
            evicted = [self._remove(old) for old in oldest]
            self._sessions[key] = _Entry(session, self._clock() + self.idle_seconds)
        for old_session in evicted:
            old_session.stop()
        return session

    def _remove(self, key: str) -> Session:
        """Removes a session, with the lock held; the caller stops it once the lock is free."""
        session = self._sessions.pop(key).session
        self.on_drop(key)
        return session

    def leave(self, key: str) -> None:
        """Notes that the page of a session was closed, or has lost its connection."""
        with self._lock:
            if key in self._sessions:
                session, until, _ = self._sessions[key]
                self._sessions[key] = _Entry(session, min(until, self._clock() + self.grace_seconds), left=True)

    def drop(self, key: str) -> None:
        """Drops a session."""
        with self._lock:
            session = self._remove(key) if key in self._sessions else None
        if session is not None:
            session.stop()

    def sweep(self) -> int:
        """Drops the sessions that were idle too long and returns how many.

        All are removed in one step: one that `get` has returned in between, or whose answer is being written, is
        never among them.
        """
        with self._lock:
            now = self._clock()
            for key, entry in self._sessions.items():
                if entry.session.answering and not entry.left:
                    self._sessions[key] = entry._replace(until=now + self.idle_seconds)
            expired = [self._remove(key) for key, entry in list(self._sessions.items()) if entry.until < now]
        for session in expired:
            session.stop()
        return len(expired)

    def start_sweeper(self, every_seconds: float = 60) -> threading.Event:
        """Sweeps in a thread of its own until the returned event is set."""
        ended = threading.Event()

        def work() -> None:
            while not ended.wait(every_seconds):
                self.sweep()

        threading.Thread(target=work, name="gpt4roi-sweep", daemon=True).start()
        return ended
