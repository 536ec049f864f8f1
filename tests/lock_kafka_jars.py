"""Write `kafka-jars.lock` anew: which jars a Kafka broker needs, and the SHA-256 of each.

`python tests/lock_kafka_jars.py [VERSION]` moves to another Kafka.
Needs `mvn`: which versions belong together is for Maven to say.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from pathlib import Path

from kafka_server import LOCK, copy_with_maven, kafka_version

LOG4J_VERSION = "2.24.3"

HEADER = """\
# The jars of a single Apache Kafka broker for the tests, with their SHA-256.
# Written by tests/lock_kafka_jars.py; read by tests/kafka_server.py.
"""


def main() -> int:
    maven = shutil.which("mvn")
    if maven is None:
        sys.stderr.write("Maven is not installed: it resolves which jars belong together.\n")
        return 1
    version = sys.argv[1] if len(sys.argv) > 1 else kafka_version()
    roots = [
        f"org.apache.kafka:kafka_2.13:{version}",
        # Kafka logs through SLF4J, which is silent without a binding.
        f"org.apache.logging.log4j:log4j-slf4j-impl:{LOG4J_VERSION}",
    ]
    with tempfile.TemporaryDirectory() as temporary:
        repository = Path(temporary)
        trouble = copy_with_maven(maven, roots, repository, transitive=True, layout=True)
        if trouble:
            sys.stderr.write(trouble + "\n")
            return 1
        lines = sorted(_line(jar, repository) for jar in repository.rglob("*.jar"))
    LOCK.write_text(HEADER + "".join(lines))
    sys.stdout.write(f"{LOCK.name}: {len(lines)} jars of Kafka {version}\n")
    return 0


def _line(jar: Path, repository: Path) -> str:
    *group, artifact, version, _ = jar.relative_to(repository).parts
    digest = hashlib.sha256(jar.read_bytes()).hexdigest()
    return f"{'.'.join(group)}:{artifact}:{version} {digest}\n"


if __name__ == "__main__":
    sys.exit(main())
