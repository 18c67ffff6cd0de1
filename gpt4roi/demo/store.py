"""The sessions of all people at once: apart from each other, bounded in number, put away when they rest."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from gpt4roi.demo.session import Session


class _Held(NamedTuple):
    """until: the clock's time when the session is put away, unless it is used. left: its page was closed."""

    session: Session
    until: float
    left: bool = False


class SessionStore:
    """Holds at most max_sessions sessions by an unguessable key; the one that rested longest makes room for a new one.

    A session that was not used for idle_seconds, or whose page was left grace_seconds ago and did not come back, is
    dropped by `sweep`, which `keep_swept` calls every minute. A page that lost its network for a moment has left too.
    While an answer is written for a page that is open, its session is being used.
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
        """Called with the key of a session that was put away, so that others may forget it too.

        The store is locked meanwhile: nobody has begun anew under that key. It must be quick and leave the store alone.
        """
        self._lock = threading.Lock()
        self._sessions: OrderedDict[str, _Held] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    def get(self, key: str) -> Session:
        """Returns the session of a key, a new one where there is none."""
        with self._lock:
            held = self._sessions.pop(key, None)
            session = held.session if held else self._make()
            crowd = list(self._sessions)[: max(len(self._sessions) + 1 - self.max_sessions, 0)]
            crowded_out = [self._take(old) for old in crowd]
            self._sessions[key] = _Held(session, self._clock() + self.idle_seconds)
        for oldest in crowded_out:
            oldest.stop()
        return session

    def _take(self, key: str) -> Session:
        """Takes a session out, with the lock held; whoever calls this stops it once the lock is free."""
        session = self._sessions.pop(key).session
        self.on_drop(key)
        return session

    def leave(self, key: str) -> None:
        """Notes that the page of a session was closed, or has lost its connection."""
        with self._lock:
            if key in self._sessions:
                session, until, _ = self._sessions[key]
                self._sessions[key] = _Held(session, min(until, self._clock() + self.grace_seconds), left=True)

    def drop(self, key: str) -> None:
        """Forgets a session."""
        with self._lock:
            session = self._take(key) if key in self._sessions else None
        if session is not None:
            session.stop()

    def sweep(self) -> int:
        """Drops the sessions that have rested too long and returns how many.

        All are taken out in one step: one that `get` has returned in between, or whose answer is being written, is
        never among them.
        """
        with self._lock:
            now = self._clock()
            for key, held in self._sessions.items():
                if held.session.answering and not held.left:
                    self._sessions[key] = held._replace(until=now + self.idle_seconds)
            rested = [self._take(key) for key, held in list(self._sessions.items()) if held.until < now]
        for session in rested:
            session.stop()
        return len(rested)

    def keep_swept(self, every_seconds: float = 60) -> threading.Event:
        """Sweeps in a thread of its own until the returned event is set."""
        ended = threading.Event()

        def work() -> None:
            while not ended.wait(every_seconds):
                self.sweep()

        threading.Thread(target=work, name="gpt4roi-sweep", daemon=True).start()
        return ended
