"""Records one of everything into all trackers. `program.py first|second thread|process`.

The first is killed in the middle, the second resumes the run and ends it.
"""

from __future__ import annotations

import json
import os
import signal
import sys

import otel_tracking as ot
from tests.contract.content import CONFIG, PROJECT, RUN_ID, log_media, log_points, log_texts

half, delivery = sys.argv[1:]
tracking = ot.Tracking(log_with="all", project_dir="runs", delivery=delivery, run_id=RUN_ID)
tracking.init_trackers(PROJECT, config=CONFIG)
log_points(tracking, half)
log_texts(tracking, half)
log_media(tracking, half)
if half == "first":
    tracking.flush(4)  # some trackers have it all, others have not
    os.kill(os.getpid(), signal.SIGKILL)
tracking.end_training(timeout=100)
receipt = tracking.receipt()
print(
    json.dumps(
        {
            "recorded": receipt.recorded,
            "trackers": {
                name: {
                    "delivered": tracker.delivered,
                    "pending": tracker.pending,
                    "dropped": dict(tracker.dropped),
                    "stored_altered": dict(tracker.stored_altered),
                    "not_stored": dict(tracker.not_stored),
                    "errors": dict(tracker.errors),
                    "state": tracker.state,
                }
                for name, tracker in receipt.trackers.items()
            },
        }
    )
)
