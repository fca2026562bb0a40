package pipeline

import (
	"crypto/sha256"
	"encoding/hex"
	"regexp"
	"strings"
	"time"
)

// Names and identities. Each is its own type, so that two cannot be swapped in
// a call.
type (
	// RunID is a ULID: it sorts by the time the run was made.
	RunID string
	// AttemptID is a ULID; one assignment of a task to an agent.
	AttemptID string
	// AgentID is derived from the agent's public key, see AgentIDOf.
	AgentID string
	// RunKey identifies the event that asked for a run; at most one run has it.
	RunKey string
	// CommitID is a Git object name in lower-case hexadecimal.
	CommitID string
	// Ref is a full Git reference name, such as refs/heads/main.
	Ref string
	// Digest names content: "sha256:" or "git:" and lower-case hexadecimal.
	Digest string

	CompositionName string
	TaskName        string
	PluginName      string
	PoolName        string
	SecretName      string
)

// Seq numbers events of the record; it rises by one with each and has no gaps.
type Seq int64

// Token fences an assignment: a message about an attempt counts only when it
// carries the token that the record holds. Tokens are compared as a pair.
type Token struct {
	// Incarnation of the record; raised when a backup is restored.
	Incarnation int64 `json:"incarnation"`
	// Epoch counts the assignments of one task; it is never reset.
	Epoch int64 `json:"epoch"`
}

// Duration is a time.Duration that reads and writes as text ("1h30m").
type Duration time.Duration

// MarshalText writes the duration as time.Duration does.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText reads what time.ParseDuration reads.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = Duration(v)
	return err
}

func (d Duration) String() string { return time.Duration(d).String() }

var nameRE = regexp.MustCompile(`^[a-z][a-z0-9-]{0,62}$`)

// ValidName reports whether s may name a composition, task, plugin, pool or
// secret: a lower-case letter, then up to 62 of a-z, 0-9 and "-". Such a name is
// safe as a path element, a ref component and a URL segment.
func ValidName(s string) bool { return nameRE.MatchString(s) }

// AgentIDOf derives an agent's identity from its ed25519 public key, so that no
// message can claim another's.
func AgentIDOf(publicKey []byte) AgentID {
	sum := sha256.Sum256(publicKey)
	return AgentID("a-" + hex.EncodeToString(sum[:8]))
}

// DigestOf returns the sha256 digest of b.
func DigestOf(b []byte) Digest {
	sum := sha256.Sum256(b)
	return Digest("sha256:" + hex.EncodeToString(sum[:]))
}

// Short is the first 12 digits, enough to recognise a digest.
func (d Digest) Short() string {
	_, digits, _ := strings.Cut(string(d), ":")
	return digits[:min(12, len(digits))]
}

// Short is the first 12 characters, enough to recognise a commit.
func (c CommitID) Short() string { return string(c[:min(12, len(c))]) }

// Head is a commit of one of the repositories that are watched: the source repository
// of that name, or the ops repository when Repo is "". Two repositories may have the
// same commit.
type Head struct {
	Repo   string
	Commit CommitID
}

// SourceRef is how the record calls a ref of a source repository beside those of the
// ops repository, as refs/sources/app/heads/main. It is no branch and no tag there.
func SourceRef(repo string, ref Ref) Ref {
	return Ref(sourceRefs + repo + strings.TrimPrefix(string(ref), "refs"))
}

const sourceRefs = "refs/sources/"

// Branch returns the branch name of a refs/heads/ ref, and "" for any other.
func (r Ref) Branch() string {
	const p = "refs/heads/"
	if len(r) > len(p) && string(r[:len(p)]) == p {
		return string(r[len(p):])
	}
	return ""
}
