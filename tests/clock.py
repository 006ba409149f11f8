"""How long something took, on two clocks, so that a bound in seconds also holds on a machine that others use.

A wall clock alone counts the time in which other jobs had the processor: "within 2 s" then fails at a load of three.
The processor's clock alone counts a library's threads twice, and does not see a wait. So the smaller of both is held to
the figure, and the wall clock to ten times the figure, which a hang exceeds on any machine.
"""

import time

PATIENCE = 10  # how many times as long the wall clock may take


class Watch:
    """Starts when it is made."""

    def __init__(self) -> None:
        self.wall, self.processor = time.perf_counter(), time.process_time()

    def spent(self) -> float:
        """Seconds: the smaller of both clocks, or a tenth of the wall clock where that is more."""
        wall, processor = time.perf_counter() - self.wall, time.process_time() - self.processor
        return max(min(wall, processor), wall / PATIENCE)
