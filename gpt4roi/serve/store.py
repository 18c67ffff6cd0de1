"""The sessions of all people at once: apart from each other, bounded in number, put away when they rest."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from gpt4roi.serve.session import Session


class SessionStore:
    """Holds at most max_sessions sessions by an unguessable key; the one that rested longest makes room for a new one.

    A session that was not used for idle_seconds, or whose page was left grace_seconds ago and did not come back, is
    dropped by `sweep`, which `keep_swept` calls every minute. A page that lost its network for a moment has left too.
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
        """Called with the key of a session that was put away, so that others may forget it too."""
        self._lock = threading.Lock()
        self._sessions: OrderedDict[str, tuple[Session, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    def get(self, key: str) -> Session:
        """Returns the session of a key, a new one where there is none."""
        with self._lock:
            session, _ = self._sessions.pop(key, (None, 0.0))
            session = session or self._make()
            crowded_out = [
                self._sessions.popitem(last=False) for _ in range(len(self._sessions) + 1 - self.max_sessions)
            ]
            self._sessions[key] = (session, self._clock() + self.idle_seconds)
        for old_key, (oldest, _) in crowded_out:
            oldest.stop()
            self.on_drop(old_key)
        return session

    def leave(self, key: str) -> None:
        """Notes that the page of a session was closed, or has lost its connection."""
        with self._lock:
            if key in self._sessions:
                session, until = self._sessions[key]
                self._sessions[key] = (session, min(until, self._clock() + self.grace_seconds))

    def drop(self, key: str) -> None:
        """Forgets a session."""
        with self._lock:
            session, _ = self._sessions.pop(key, (None, 0.0))
        if session is not None:
            session.stop()
            self.on_drop(key)

    def sweep(self) -> int:
        """Drops the sessions that have rested too long and returns how many."""
        now = self._clock()
        with self._lock:
            old = [key for key, (_, until) in self._sessions.items() if until < now]
        for key in old:
            self.drop(key)
        return len(old)

    def keep_swept(self, every_seconds: float = 60) -> threading.Event:
        """Sweeps in a thread of its own until the returned event is set."""
        ended = threading.Event()

        def work() -> None:
            while not ended.wait(every_seconds):
                self.sweep()

        threading.Thread(target=work, name="gpt4roi-sweep", daemon=True).start()
        return ended
