-- The registry of one trust domain. Times are seconds since 1970, UTC.

-- What is decided once, at first start, and read ever after.
CREATE TABLE mesh (
    singleton    BIGINT  PRIMARY KEY CHECK (singleton = 1),
    trust_domain TEXT    NOT NULL,
    -- Sealed with the key that seals everything here: whoever brings another one is told so at once.
    sealing_check BYTEA NOT NULL,
    -- The replica that writes the first administrator's files, and when they were on disk, so that a crash in between
    -- repeats the step.
    admin_by     TEXT,
    admin_made   BIGINT
);

-- The processes that serve this registry. Times are the database's own: those of the replicas may differ.
CREATE TABLE replicas (
    name       TEXT    PRIMARY KEY,
    -- Its data directory, which only one process holds.
    home       TEXT    NOT NULL,
    -- One life of it.
    run        TEXT    NOT NULL,
    -- Where the other replicas reach it.
    url        TEXT    NOT NULL,
    version    TEXT    NOT NULL,
    started_at BIGINT  NOT NULL,
    seen_at    BIGINT  NOT NULL
);

-- Certificate authorities. The key is sealed under a key that is not in this database.
CREATE TABLE authorities (
    serial      TEXT    PRIMARY KEY,
    role        TEXT    NOT NULL CHECK (role IN ('root', 'intermediate')),
    -- The root that an intermediate chains to.
    root        TEXT    REFERENCES authorities (serial),
    -- The replica that signs with an intermediate; a root is nobody's.
    holder      TEXT,
    certificate BYTEA   NOT NULL,
    -- DER, one after the other: what lies between an intermediate and its root.
    path        BYTEA   NOT NULL,
    -- None of a root that is kept elsewhere.
    sealed_key  BYTEA,
    not_before  BIGINT  NOT NULL,
    not_after   BIGINT  NOT NULL,
    -- Before this it is in every bundle and signs nothing.
    signs_from  BIGINT  NOT NULL,
    CHECK ((role = 'root') = (root IS NULL) AND (role = 'root') = (holder IS NULL))
);

-- The last revocation list of each authority.
CREATE TABLE crls (
    authority   TEXT    PRIMARY KEY REFERENCES authorities (serial) ON DELETE CASCADE,
    number      BIGINT  NOT NULL,
    list        BYTEA   NOT NULL,
    this_update BIGINT  NOT NULL,
    next_update BIGINT  NOT NULL,
    -- Of what it says.
    digest      BYTEA   NOT NULL
);

-- Keys that sign tokens for workloads, shared by all replicas. Sealed as the authorities' keys are.
CREATE TABLE jwt_keys (
    -- The `kid`: the thumbprint of the public key.
    id         TEXT    PRIMARY KEY,
    sealed_key BYTEA   NOT NULL,
    made_at    BIGINT  NOT NULL,
    -- Before this it is in every bundle and signs nothing.
    signs_from BIGINT  NOT NULL
);

-- Every certificate ever issued and not yet long expired. The primary key is what makes serials unique.
CREATE TABLE certificates (
    serial     TEXT    PRIMARY KEY,
    identity   TEXT    NOT NULL,
    leaf       BYTEA   NOT NULL,
    authority  TEXT    NOT NULL REFERENCES authorities (serial),
    key_sha256 BYTEA   NOT NULL,
    not_before BIGINT  NOT NULL,
    not_after  BIGINT  NOT NULL,
    -- What was shown for it, as JSON.
    evidence   TEXT    NOT NULL,
    -- What was attested when its line of renewals began, as JSON, to be judged again at each of them. None of those that
    -- no document admits: the control plane's own, administrators', people's.
    attested   TEXT,
    -- The first certificate of its line, if it is not itself the first.
    lineage    TEXT,
    -- Our certificate that asked for it: the one it renews, or that of a node's agent.
    through    TEXT,
    -- The node whose agent it is of, or whose agent vouched when its line began.
    node       TEXT,
    revoked_at BIGINT
);
CREATE INDEX certificates_by_identity ON certificates (identity, not_after);
CREATE INDEX certificates_by_expiry ON certificates (not_after);
CREATE INDEX certificates_by_node ON certificates (node, not_after) WHERE node IS NOT NULL;

-- Join tokens: never the secret, only its hash. Spent means a certificate was recorded for it.
CREATE TABLE tokens (
    secret_sha256 BYTEA   PRIMARY KEY,
    identity      TEXT    NOT NULL,
    created_at    BIGINT  NOT NULL,
    created_by    TEXT    NOT NULL,
    expires_at    BIGINT  NOT NULL,
    spent_at      BIGINT ,
    spent_on      TEXT    REFERENCES certificates (serial),
    -- By whoever revoked it, or its bearer.
    withdrawn_at  BIGINT,
    CHECK ((spent_at IS NULL) = (spent_on IS NULL))
);
CREATE INDEX tokens_by_expiry ON tokens (expires_at);
CREATE INDEX tokens_by_identity ON tokens (identity) WHERE spent_on IS NULL;
CREATE INDEX tokens_by_certificate ON tokens (spent_on);

-- Revisions of the documents. A number is never used again. Old ones are forgotten, unless a snapshot refers to them.
CREATE TABLE revisions (
    revision   BIGINT  PRIMARY KEY,
    applied_at BIGINT  NOT NULL,
    applied_by TEXT    NOT NULL,
    -- How many there were, whatever files they were in.
    documents  BIGINT  NOT NULL
);
-- The documents, verbatim: a file belongs to every revision from one on until, if ever, another text takes its place. So a
-- change adds what it changes, and not the mesh. Either revision may have been forgotten.
CREATE TABLE revision_files (
    position BIGINT  NOT NULL,
    since    BIGINT  NOT NULL,
    until    BIGINT,
    name     TEXT    NOT NULL,
    text     TEXT    NOT NULL,
    PRIMARY KEY (position, since)
);

-- The last revision that changed what a workload is told. Rows outlive their workload, so that a version is never reused.
CREATE TABLE snapshots (
    workload TEXT    PRIMARY KEY,
    version  BIGINT  NOT NULL REFERENCES revisions (revision),
    digest   BYTEA   NOT NULL
);
CREATE INDEX snapshots_by_version ON snapshots (version);

-- Append-only: each row carries a hash over itself and the row before.
CREATE TABLE audit (
    sequence BIGINT  PRIMARY KEY,
    time     BIGINT  NOT NULL,
    actor    TEXT    NOT NULL,
    action   TEXT    NOT NULL,
    subject  TEXT    NOT NULL,
    outcome  TEXT    NOT NULL,
    detail   TEXT    NOT NULL,
    hash     BYTEA   NOT NULL
);
CREATE FUNCTION audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'the audit log is append-only'; END $$;
CREATE TRIGGER audit_is_not_changed BEFORE UPDATE OR DELETE OR TRUNCATE ON audit EXECUTE FUNCTION audit_is_append_only();

-- Why sidecars decided as they did, as they reported it.
CREATE TABLE decisions (
    id          TEXT    PRIMARY KEY,
    workload    TEXT    NOT NULL,
    recorded_at BIGINT  NOT NULL,
    record      BYTEA   NOT NULL
);
CREATE INDEX decisions_by_workload ON decisions (workload, recorded_at);
CREATE INDEX decisions_by_age ON decisions (recorded_at);

-- The number of what every sidecar is told of whom to believe, and the digest of it.
CREATE TABLE trust (
    single  BIGINT  PRIMARY KEY CHECK (single = 1),
    version BIGINT  NOT NULL,
    digest  BYTEA   NOT NULL
);

-- What was revoked before its time. `ends_at` is when the last certificate it concerns ends. It stays as long as any of
-- them is on record.
CREATE TABLE revocations (
    number       BIGINT  PRIMARY KEY,
    kind         TEXT    NOT NULL CHECK (kind IN ('serial', 'identity', 'node', 'workloads')),
    -- A serial, an identity, a node, or nothing for all workloads.
    subject      TEXT    NOT NULL,
    -- What begins before it is refused; a single certificate is refused whenever it begins.
    moment       BIGINT,
    reason       TEXT    NOT NULL,
    revoked_at   BIGINT  NOT NULL,
    revoked_by   TEXT    NOT NULL,
    certificates BIGINT  NOT NULL,
    ends_at      BIGINT  NOT NULL
);
CREATE INDEX revocations_by_subject ON revocations (kind, subject);
CREATE INDEX certificates_revoked ON certificates (revoked_at) WHERE revoked_at IS NOT NULL;

-- Certificates with whether a revocation ended them. What was revoked by itself is marked, and so is what still lived when
-- a rule came; a rule ends the rest all the same, without its rows being touched.
CREATE VIEW certificate_standing AS
SELECT c.*, CAST(CASE
    WHEN c.revoked_at IS NOT NULL
    OR EXISTS (SELECT 1 FROM revocations WHERE kind = 'identity' AND subject = c.identity AND moment > c.not_before)
    OR EXISTS (SELECT 1 FROM revocations WHERE kind = 'node' AND subject = c.node AND moment > c.not_before)
    OR EXISTS (SELECT 1 FROM revocations WHERE kind = 'workloads' AND c.identity LIKE 'spiffe://%/ns/%' AND moment > c.not_before)
    THEN 1 ELSE 0 END AS BIGINT) AS revoked
FROM certificates c;

-- An issuance that was under way when a revocation came is undone.
CREATE FUNCTION certificates_heed_revocations() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM revocations WHERE kind = 'identity' AND subject = NEW.identity AND moment > NEW.not_before)
        OR EXISTS (SELECT 1 FROM revocations WHERE kind = 'node' AND subject = NEW.node AND moment > NEW.not_before)
        OR EXISTS (SELECT 1 FROM revocations WHERE kind = 'workloads' AND NEW.identity LIKE 'spiffe://%/ns/%' AND moment > NEW.not_before)
        OR EXISTS (SELECT 1 FROM certificate_standing WHERE serial = NEW.through AND revoked = 1)
    THEN
        RAISE EXCEPTION 'revoked meanwhile';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER certificates_heed_revocations BEFORE INSERT ON certificates
    FOR EACH ROW EXECUTE FUNCTION certificates_heed_revocations();

-- How often each topic changed, counted up in the transaction of the change.
CREATE TABLE topics (
    topic  TEXT    PRIMARY KEY,
    number BIGINT  NOT NULL
);

-- The last batch each writer committed, by which it finds out what became of a commit whose answer was lost. A writer
-- is one run of one process.
CREATE TABLE writers (
    name    TEXT   PRIMARY KEY,
    batch   BIGINT NOT NULL,
    used_at BIGINT NOT NULL
);
