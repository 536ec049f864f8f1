"""`convoy` without metrics and logs: what is measured against to see what they cost."""

from __future__ import annotations

import logging
from typing import Any

from service import cli
from service.ops.metrics import Metrics


class Nothing:
    """Takes what a metric takes, and does nothing with it."""

    def inc(self, amount: float = 1) -> None:
        pass

    def set(self, value: float) -> None:
        pass

    def observe(self, amount: float) -> None:
        pass


def main() -> None:
    nothing = Nothing()

    def no_metric(_: Metrics, *__: Any) -> Nothing:
        return nothing

    for name in ("counter", "gauge", "histogram", "gauge_of", "collect_with"):
        setattr(Metrics, name, no_metric)
    logging.disable(logging.CRITICAL)
    cli.main()


if __name__ == "__main__":
    main()
