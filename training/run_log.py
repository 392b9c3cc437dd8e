"""What a run tells while it runs: to `metrics.jsonl` and `rank_times.jsonl`, to trackers, to the report, and to whoever
looks on. Only rank 0 tells anything."""

from collections.abc import Iterable, Mapping
from contextlib import closing
from types import TracebackType
from typing import Any, NamedTuple

from training.disk_space import size
from training.display import Display, on_a_terminal
from training.errors import StorageError
from training.evaluate import perplexity
from training.live_report import LiveReport
from training.metrics import MetricsFile
from training.rank_times import RankTimes
from training.ranks import RankInfo
from training.run_directory import RunDirectory
from training.saver import SaveReport
from training.trackers import Trackers


class Outlets(NamedTuple):
    """Where rank 0 tells it."""

    metrics: MetricsFile
    rank_times: MetricsFile
    display: Display


class RunLog:
    """Takes steps and evaluations; silent on the other ranks."""

    def __init__(
        self,
        run: RunDirectory,
        done: int,
        total: int,
        log_freq: int,
        ranks: RankInfo,
        trackers: Trackers | None = None,
        report: LiveReport | None = None,
    ) -> None:
        self._trackers, self._report = trackers, report
        self._total, self._log_freq = total, log_freq
        self._outlets: Outlets | None = None
        if ranks.rank == 0:
            self._outlets = Outlets(
                MetricsFile(run.metrics, done),
                MetricsFile(run.rank_times, done),
                Display(done, total, on_a_terminal(ranks.launcher)),
            )

    def step(self, row: Mapping[str, Any]) -> None:
        """A step's row of metrics."""
        if self._outlets is None:
            return
        if row["step"] % self._log_freq == 0 or row["step"] == self._total:
            self._write(row)
        self._outlets.display.step(row)
        self._lines(self._report.rewrite() if self._report is not None else [])

    def rank_times(self, times: RankTimes | None) -> None:
        """How long the ranks were busy with a step, where that is known."""
        if self._outlets is not None and times is not None and times.step % self._log_freq == 0:
            self._outlets.rank_times.write(times.row())

    def evaluation(self, step: int, loss: float | None) -> None:
        """A loss on the held-out documents, in nats per token; None where nothing is held out."""
        if loss is not None:
            self._write({"step": step, "eval_loss": loss, "perplexity": perplexity(loss)})
            self.line(f"step {step}/{self._total} · held-out loss {loss:.4f} · perplexity {perplexity(loss):.2f}")

    def event(self, row: Mapping[str, Any], text: str) -> None:
        """Something that happened at a step: a row of metrics with the key `event`, whatever --log-freq says, and a
        line."""
        self._write(row)
        self.line(text)

    def checkpoints(self, reports: Iterable[SaveReport]) -> None:
        """Those that have come onto the disk."""
        for report in reports:
            self._write(report.row())
            self.line(
                f"step {report.step}/{self._total} · checkpoint of {size(report.bytes)} saved in {report.seconds:.2f} "
                f"s, {report.blocking_seconds:.3f} s of them waited for"
            )

    def line(self, text: str) -> None:
        """Something that happened."""
        if self._outlets is not None:
            self._outlets.display.line(text)

    def _write(self, row: Mapping[str, Any]) -> None:
        if self._outlets is not None:
            self._outlets.metrics.write(row)
            self._lines(self._trackers.tell(row) if self._trackers is not None else [])

    def _lines(self, texts: Iterable[str]) -> None:
        for text in texts:
            self.line(text)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._outlets is not None:
            metrics, rank_times, display = self._outlets
            try:
                with closing(metrics), closing(rank_times):
                    pass
            except StorageError:
                # What went wrong first is what must come out.
                if error is None:
                    raise
            finally:
                if self._report is not None:
                    self._report.stop()
                # A second Ctrl-C stops at once.
                if self._trackers is not None and kind is not KeyboardInterrupt:
                    self._lines(self._trackers.close())
                display.close()
