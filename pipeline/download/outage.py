"""Detect that the network is down, hold all fetches, probe, and resume when it is back. Light.

Otherwise an outage would mark whole shards as failed. During an outage, nearly all of a worker's
recent outcomes failed for network reasons. Then one thread probes hosts that answered before, and
the others wait. A list of dead links is not an outage: a host answers the first probe.
"""

import threading
import time
from collections import deque
from collections.abc import Callable

WINDOW = 100  # number of recent outcomes considered
COLLAPSE = 0.95  # share of them that failed for network reasons
PROBED_HOSTS = 20

Host = tuple[str, int]  # name and port


class OutageWatch:
    """The watch that all fetch threads of a worker share.

    Args:
        announce: called with the reason for waiting, and with None when fetching resumes.
        max_pause: seconds after which waiting ends and `gave_up` is set.
        probe_every: seconds between probes.
        window: number of recent outcomes considered.
    """

    def __init__(
        self,
        announce: Callable[[str | None], None],
        max_pause: float,
        probe_every: float = 10.0,
        window: int = WINDOW,
    ) -> None:
        self._announce = announce
        self._max_pause = max_pause
        self._probe_every = probe_every
        self._lock = threading.Lock()
        self._back = threading.Event()
        self._back.set()
        self._outcomes: deque[bool] = deque(maxlen=window)
        self._good_hosts: deque[Host] = deque(maxlen=PROBED_HOSTS)
        self._any_hosts: deque[Host] = deque(maxlen=PROBED_HOSTS)
        self.gave_up = False
        self.outages = 0  # that began and ended

    def restart(self) -> None:
        """Forget the outcomes but not the hosts, before each shard."""
        self._outcomes.clear()
        self.gave_up = False

    def report(self, host: Host, network_failed: bool, answers: Callable[[Host], bool]) -> bool:
        """Count an outcome; wait, in the caller's thread, while the network is down.

        `network_failed` says whether the fetch failed for a network reason, `answers` whether a
        host accepts a connection.

        Returns:
            Whether an outage held this thread and has ended.
        """
        with self._lock:
            self._outcomes.append(network_failed)
            hosts = self._any_hosts if network_failed else self._good_hosts
            if host not in hosts:
                hosts.append(host)
            outages = self.outages
            full = len(self._outcomes) == self._outcomes.maxlen
            collapsed = full and sum(self._outcomes) >= COLLAPSE * len(self._outcomes)
            prober = collapsed and self._back.is_set() and not self.gave_up
            if prober:
                self._back.clear()
        if prober:
            self._probe_until_back(answers)
        elif network_failed:
            self._back.wait(self._max_pause)
        return network_failed and self.outages > outages

    def _probe_until_back(self, answers: Callable[[Host], bool]) -> None:
        began = time.monotonic()
        paused = False
        try:
            while not self._any_answers(answers):
                waited = time.monotonic() - began
                if waited > self._max_pause:
                    self.gave_up = True
                    return
                paused = True
                self._announce(f"paused {waited:.0f} s: the network seems down, probing")
                time.sleep(self._probe_every)
            self.outages += paused
        finally:
            with self._lock:
                self._outcomes.clear()
            if paused:
                self._announce(None)
            self._back.set()

    def _any_answers(self, answers: Callable[[Host], bool]) -> bool:
        """Return whether any host seen before answers; try only those that did, if any did."""
        hosts = list(self._good_hosts) or list(self._any_hosts)
        return any(answers(host) for host in reversed(hosts))
