"""The tables of the cache file. Whoever changes them raises SCHEMA; an old file is then left alone and a new one made.

Nothing here is the truth: every row can be made again from the files of the store.
"""

from __future__ import annotations

SCHEMA = 4
"""Part of the file's name, so that two versions of adapterhub don't take the file from each other."""

TABLES = (
    # How far the catalogue has read: the journals' marks, and the folders as they were when they were listed.
    "CREATE TABLE marks (log TEXT PRIMARY KEY, offset INTEGER NOT NULL, tail BLOB NOT NULL) WITHOUT ROWID",
    "CREATE TABLE folders (path TEXT PRIMARY KEY, stamp INTEGER NOT NULL) WITHOUT ROWID",
    # Lines of a journal that the files don't bear out yet. `what` is a name, or the digest of an attestation.
    """CREATE TABLE pending (
        log TEXT NOT NULL, what TEXT NOT NULL, operation TEXT NOT NULL, since REAL NOT NULL,
        PRIMARY KEY (log, what)
    ) WITHOUT ROWID""",
    """CREATE TABLE names (
        namespace TEXT NOT NULL, name TEXT NOT NULL, tag TEXT NOT NULL,
        label TEXT NOT NULL UNIQUE, digest TEXT, added TEXT NOT NULL, error TEXT,
        adapter INTEGER,
        PRIMARY KEY (namespace, name, tag)
    ) WITHOUT ROWID""",
    "CREATE INDEX names_of ON names (digest)",
    "CREATE INDEX names_wrong ON names (digest) WHERE error NOTNULL",
    # `listed`: its manifest is on the shelf. `again`: something of it couldn't be read, so it is read again next time.
    """CREATE TABLE adapters (
        id INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE, listed INTEGER NOT NULL, again INTEGER NOT NULL, error TEXT,
        kind TEXT, base TEXT, revision TEXT, claimed TEXT, fingerprint TEXT, known_repo TEXT,
        rank INTEGER, alpha REAL, targets TEXT, modules INTEGER, parameters INTEGER, dtype TEXT, size INTEGER,
        content TEXT, event TEXT, method TEXT, license TEXT, metric TEXT, score REAL, scored_on TEXT, told INTEGER NOT NULL,
        used TEXT, config TEXT, weights TEXT, shape INTEGER
    )""",
    "CREATE INDEX adapters_wrong ON adapters (digest) WHERE error NOTNULL",
    "CREATE INDEX adapters_again ON adapters (digest) WHERE again",
    "CREATE INDEX adapters_unnamed ON adapters (fingerprint) WHERE base ISNULL AND fingerprint NOTNULL",
    "CREATE INDEX adapters_shapeless ON adapters (id) WHERE shape ISNULL AND config NOTNULL AND weights NOTNULL",
    "CREATE INDEX adapters_of_content ON adapters (content)",
    "CREATE TABLE files (adapter INTEGER NOT NULL, path TEXT NOT NULL, digest TEXT NOT NULL, size INTEGER NOT NULL)",
    "CREATE INDEX files_of ON files (adapter)",
    "CREATE INDEX files_with ON files (digest)",
    """CREATE TABLE parents (
        adapter INTEGER NOT NULL, position INTEGER NOT NULL, parent TEXT NOT NULL, name TEXT NOT NULL, how TEXT NOT NULL,
        at TEXT NOT NULL
    )""",
    "CREATE INDEX parents_of ON parents (adapter)",
    "CREATE INDEX children_of ON parents (parent)",
    # Every base it was ever trained on or checked against; `adapters.fingerprint` is the last of them.
    """CREATE TABLE based (
        adapter INTEGER NOT NULL, fingerprint TEXT NOT NULL, repo TEXT, revision TEXT, how TEXT NOT NULL, at TEXT NOT NULL
    )""",
    "CREATE INDEX based_of ON based (adapter)",
    # What the newest evaluation that has it measured of an adapter: `json`, `forgetting.passed`.
    """CREATE TABLE measured (
        adapter INTEGER NOT NULL, key TEXT NOT NULL, measure TEXT NOT NULL, value REAL NOT NULL,
        verdict TEXT, difference REAL, low REAL, high REAL, rows INTEGER, scored_on TEXT
    )""",
    "CREATE INDEX measured_of ON measured (adapter)",
    "CREATE INDEX measured_by ON measured (key)",
    # When the journal last spoke of an adapter.
    "CREATE TABLE touched (digest TEXT PRIMARY KEY, at TEXT NOT NULL) WITHOUT ROWID",
    "CREATE VIRTUAL TABLE search USING fts5 (names, about, tokenize = 'unicode61 remove_diacritics 2')",
    # Read from the weights, and only when they are asked for.
    "CREATE TABLE shapes (id INTEGER PRIMARY KEY, signature TEXT NOT NULL UNIQUE, modules TEXT NOT NULL)",
    """CREATE TABLE shaped (
        config TEXT NOT NULL, weights TEXT NOT NULL, shape INTEGER NOT NULL, PRIMARY KEY (config, weights)
    ) WITHOUT ROWID""",
    "CREATE TABLE layouts (id INTEGER PRIMARY KEY, signature TEXT NOT NULL UNIQUE, tensors TEXT NOT NULL)",
    "CREATE TABLE prints (weights TEXT PRIMARY KEY, layout INTEGER NOT NULL, hashes BLOB NOT NULL) WITHOUT ROWID",
    # Digests of files anywhere, kept for as long as a file's identity and times are the same.
    """CREATE TABLE seen (
        file TEXT PRIMARY KEY, state TEXT NOT NULL, digest TEXT NOT NULL, verified REAL
    ) WITHOUT ROWID""",
)  # fmt: skip
