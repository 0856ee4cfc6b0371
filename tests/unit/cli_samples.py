"""Messages that the CLI's tests show."""

from google.protobuf.timestamp_pb2 import Timestamp

from lorebase.v1 import adapter_pb2, upgrade_pb2

START_S = 1_760_000_000


def at(seconds: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(int((START_S + seconds) * 1e9))
    return stamp


def decision(**fields: object) -> upgrade_pb2.Decision:
    values: dict[str, object] = {
        "verdict": upgrade_pb2.VERDICT_PROMOTE,
        "evidence": "entrusted",
        "n": 200,
        "source_score": 0.985,
        "shadow_score": 0.98,
        "bare_score": 0.04,
        "few_shot_score": 0.31,
        "difference": -0.005,
        "interval_low": -0.02,
        "interval_high": 0.01,
        "margin": 0.05,
        "negative_flip_rate": 0.01,
        "negative_flip_bound": 0.03,
        "negative_flip_budget": 0.05,
        "reason": "shadow is not worse than source",
    }
    return upgrade_pb2.Decision(**{**values, **fields})  # type: ignore[arg-type]


def migration(adapter: str = "acme/dates", **fields: object) -> upgrade_pb2.Migration:
    values: dict[str, object] = {
        "adapter": adapter,
        "state": "distilling",
        "path": "distill",
        "attempt": 1,
        "stage_progress": 0.4,
    }
    return upgrade_pb2.Migration(**{**values, **fields})  # type: ignore[arg-type]


def upgrade(*migrations: upgrade_pb2.Migration, **fields: object) -> upgrade_pb2.Upgrade:
    values: dict[str, object] = {
        "id": "u-1",
        "from_base": "old",
        "to_base": "next",
        "state": upgrade_pb2.UPGRADE_STATE_MIGRATING,
        "create_time": at(0),
        "eta_seconds": 95.0,
        "migrations": migrations or (migration(),),
    }
    return upgrade_pb2.Upgrade(**{**values, **fields})  # type: ignore[arg-type]


def adapter(name: str = "acme/dates") -> adapter_pb2.Adapter:
    return adapter_pb2.Adapter(
        name=name,
        tenant=name.partition("/")[0],
        stable_version="v-2",
        base="old",
        kit_digest="sha256:" + "ab" * 32,
        create_time=at(0),
        etag="3",
        versions=[
            adapter_pb2.AdapterVersion(
                id=version,
                base="old",
                digest="sha256:" + "cd" * 32,
                peft_type="LORA",
                rank=rank,
                target_modules=["q_proj", "v_proj"],
                origin="upload",
                create_time=at(0),
            )
            for version, rank in (("v-1", 4), ("v-2", 8))
        ],
    )
