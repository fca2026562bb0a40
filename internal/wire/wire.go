// Package wire holds the messages between reconciler and agentd, and their
// encoding. It is the only thing the two binaries share about each other. It does
// no I/O; wsconn carries the frames.
//
// A connection begins with Challenge (reconciler) and Hello (agent), then Welcome
// or Refused. After that either side sends at any time. Every message about an
// attempt carries its token; a receiver ignores what it already knows, so that a
// message may be repeated, delayed or lost without harm: what matters is sent
// again after the next Welcome.
//
//	reconciler                          agent
//	Offer{attempt, token, spec}   ->
//	                              <-    Accept | Decline     journalled first
//	Go{attempt, token, secrets}   ->                         recorded first
//	                              <-    Started, Note, log frames
//	LogAck{attempt, length}       ->
//	                              <-    Result               kept until acknowledged
//	Ack | Fenced                  ->                         recorded first
//	Cancel                        ->
//
// Control messages are text frames with one JSON envelope. Log bytes travel in
// binary frames, see LogFrame. Unknown fields are ignored; an unknown type is
// answered with Unsupported and the connection stays open.
package wire

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

const (
	// Version is the protocol spoken; MinVersion the oldest one still understood.
	Version    = 1
	MinVersion = 1
	// Subprotocol is asked for in the websocket handshake.
	Subprotocol = "maestro.agent.v1"
	// MaxFrame bounds a frame in either direction: outputs, facts and fields are
	// bounded below it, and log frames are at most MaxLogFrame.
	MaxFrame = 512 << 10
	// MaxLogFrame bounds the log bytes of one frame.
	MaxLogFrame = 64 << 10
	// MaxFacts bounds the JSON of an agent's facts.
	MaxFacts = 256 << 10
	// LogWindow is how many bytes of one attempt may be sent and not acknowledged.
	LogWindow = 8 << 20

	PathConnect = "/agent/v1/connect"
	PathEnrol   = "/agent/v1/enrol"
	// HeldAccepted: written down, go not heard; HeldRunning: started or about to;
	// HeldEnded: its Result follows.
	HeldAccepted = "accepted"
	HeldRunning  = "running"
	HeldEnded    = "ended"

	// PathPlugin + tree digest (hex, no prefix) + ".tar" serves a plugin's folder;
	// PathArchive + sha256 serves the archive that a program's URL names. Both want
	// "Authorization: Bearer " + Welcome.FetchToken.
	PathPlugin  = "/agent/v1/plugins/"
	PathArchive = "/agent/v1/archives/"
)

// Message is any of the types below that have a kind.
type Message interface{ kind() string }

type (
	// Challenge opens a connection. The agent signs SignedHello(Nonce, Server).
	Challenge struct {
		Nonce  string `json:"nonce"`
		Server string `json:"server"` // identity of the record
		// Incarnation of the record. Results that an earlier one acknowledged may be
		// missing in it, so that the agent holds them again.
		Incarnation int64 `json:"incarnation,omitempty"`
	}
	// Hello proves the agent's identity and tells what it still holds.
	Hello struct {
		Versions  [2]int          `json:"versions"` // oldest, newest
		Build     string          `json:"build"`
		PublicKey []byte          `json:"public_key"`
		Signature []byte          `json:"signature"`
		Name      string          `json:"name"`
		OS        string          `json:"os"`
		Arch      string          `json:"arch"`
		BootID    string          `json:"boot_id,omitempty"`
		Facts     json.RawMessage `json:"facts,omitempty"`
		Attempts  []Held          `json:"attempts,omitempty"`
		// Warm are the compositions that have a workspace here.
		Warm []pipeline.CompositionName `json:"warm,omitempty"`
		// Seen is how far the agent knows the server's record to have been.
		Seen Seen `json:"seen,omitzero"`
	}
	// Seen is the highest that an agent was told of a record. A record that is behind it
	// was put back to an earlier state.
	Seen struct {
		Server      string       `json:"server"` // identity of the record
		Incarnation int64        `json:"incarnation"`
		Seq         pipeline.Seq `json:"seq"`
	}
	// Held is an attempt that the agent has accepted and not yet seen acknowledged by
	// this incarnation of the record.
	Held struct {
		Attempt pipeline.AttemptID `json:"attempt"`
		Token   pipeline.Token     `json:"token"`
		// Phase is one of the Held… constants.
		Phase string `json:"phase"`
	}
	// Welcome starts the conversation. For every attempt in Held the reconciler
	// then sends Go, Cancel or Fenced as the record says, and LogAck with the
	// length it has stored, from which the agent goes on.
	Welcome struct {
		Version     int              `json:"version"`
		Agent       pipeline.AgentID `json:"agent"`
		Server      string           `json:"server"`
		Incarnation int64            `json:"incarnation"`
		Seq         pipeline.Seq     `json:"seq"`
		HeartbeatMS int64            `json:"heartbeat_ms"`
		FetchToken  string           `json:"fetch_token"`
	}
	// Refused ends a connection and says why. Final means that trying again with
	// the same identity is of no use.
	Refused struct {
		Reason string `json:"reason"`
		Final  bool   `json:"final,omitempty"`
	}
	// Beat renews all that the agent holds; the answer carries the same number.
	Beat struct {
		N    int64   `json:"n"`
		Load float64 `json:"load,omitempty"`
	}
	// BeatAck tells as well how far the record is, for the agent to remember.
	BeatAck struct {
		N           int64        `json:"n"`
		Incarnation int64        `json:"incarnation,omitempty"`
		Seq         pipeline.Seq `json:"seq,omitempty"`
	}
	// Facts replaces the agent's facts.
	Facts struct {
		Facts json.RawMessage `json:"facts"`
	}
	Offer struct {
		Attempt pipeline.AttemptID `json:"attempt"`
		Token   pipeline.Token     `json:"token"`
		Spec    Spec               `json:"spec"`
	}
	Accept struct {
		Attempt pipeline.AttemptID `json:"attempt"`
		Token   pipeline.Token     `json:"token"`
	}
	Decline struct {
		Attempt pipeline.AttemptID `json:"attempt"`
		Token   pipeline.Token     `json:"token"`
		Reason  string             `json:"reason"`
	}
	// Go lets the task start. Secrets are values by field path; they stay in memory.
	Go struct {
		Attempt pipeline.AttemptID  `json:"attempt"`
		Token   pipeline.Token      `json:"token"`
		Secrets map[string]Redacted `json:"secrets,omitempty"` // by name of the secret
	}
	Started struct {
		Attempt pipeline.AttemptID `json:"attempt"`
		Token   pipeline.Token     `json:"token"`
		At      time.Time          `json:"at"`
	}
	// Note is what a running task tells of itself; losing one does no harm.
	Note struct {
		Attempt pipeline.AttemptID `json:"attempt"`
		Token   pipeline.Token     `json:"token"`
		// Waiting is what the task waits for, "" when it goes on.
		Waiting *string `json:"waiting,omitempty"`
		// Progress is done parts of 1.
		Progress *float64        `json:"progress,omitempty"`
		Text     string          `json:"text,omitempty"`
		Links    []pipeline.Link `json:"links,omitempty"`
	}
	Result struct {
		Attempt pipeline.AttemptID `json:"attempt"`
		Token   pipeline.Token     `json:"token"`
		Result  pipeline.Result    `json:"result"`
	}
	// Ack: the result is on disk here; the agent may forget it.
	Ack struct {
		Attempt pipeline.AttemptID `json:"attempt"`
		Token   pipeline.Token     `json:"token"`
	}
	// Fenced: the token is not the record's; the agent stops the attempt if it
	// runs, and discards it.
	Fenced struct {
		Attempt pipeline.AttemptID `json:"attempt"`
		Token   pipeline.Token     `json:"token"`
		Reason  string             `json:"reason"`
	}
	Cancel struct {
		Attempt pipeline.AttemptID `json:"attempt"`
		Token   pipeline.Token     `json:"token"`
		Reason  string             `json:"reason"`
	}
	// LogAck: so many bytes from the start are on disk here. A length below what
	// was sent asks for the rest again.
	LogAck struct {
		Attempt pipeline.AttemptID `json:"attempt"`
		Token   pipeline.Token     `json:"token"`
		Length  int64              `json:"length"`
		// Resend: bytes were missing; go on from Length.
		Resend bool `json:"resend,omitempty"`
	}
	// Forget lists runs that have ended: their workspaces are free for others.
	Forget struct {
		Runs []pipeline.RunID `json:"runs"`
	}
	Unsupported struct {
		Kind string `json:"kind"`
	}
)

// Spec is all that an agent needs to run a task, but for secret values.
type Spec struct {
	Run         pipeline.RunID           `json:"run"`
	Number      int                      `json:"number"`
	Composition pipeline.CompositionName `json:"composition"`
	Task        pipeline.TaskName        `json:"task"`
	Uses        string                   `json:"uses"` // plugin/task
	Plugin      Plugin                   `json:"plugin"`
	// Fields is the JSON object of the task's fields, bindings filled in.
	Fields json.RawMessage `json:"fields"`
	// Secrets are the names whose values come with Go.
	Secrets []pipeline.SecretName `json:"secrets,omitempty"`
	Outputs pipeline.Type         `json:"outputs"`
	// Previous are the outputs of this task in the last successful run; nil when none.
	Previous  json.RawMessage   `json:"previous,omitempty"`
	Timeout   pipeline.Duration `json:"timeout,omitempty"`
	LostAfter pipeline.Duration `json:"lost_after"`
	Effect    pipeline.Effect   `json:"effect"`
	// Slot and Untrusted choose the workspace, together with Composition and, where
	// Source is set, Repo.
	Slot           int    `json:"slot"`
	Untrusted      bool   `json:"untrusted,omitempty"`
	IdempotencyKey string `json:"idempotency_key"`
	// Repo is the address of the repository that Commit and Ref are of, without
	// credentials. Source is its name when it is not the ops repository.
	Repo   string            `json:"repo"`
	Source string            `json:"source,omitempty"`
	Commit pipeline.CommitID `json:"commit"`
	Ref    pipeline.Ref      `json:"ref"`
	// TryNumber is 1 for the first attempt of the task.
	TryNumber int `json:"try_number"`
}

// Plugin tells where a task's program is.
type Plugin struct {
	Name pipeline.PluginName `json:"name"`
	Tree pipeline.Digest     `json:"tree"`
	// Programs as the manifest lists them; the agent takes the first that fits it.
	Programs []pipeline.Program `json:"programs"`
}

// Redacted is a secret value: it prints as ***, everywhere but in Go's JSON.
type Redacted string

func (Redacted) String() string   { return "***" }
func (Redacted) GoString() string { return "***" }

// EnrolRequest is posted to PathEnrol with "Authorization: Bearer " + join token.
type EnrolRequest struct {
	PublicKey []byte `json:"public_key"`
	Name      string `json:"name"`
	// Signature of SignedEnrol(token) proves that the agent holds the key.
	Signature []byte `json:"signature"`
}

// EnrolResponse answers with 200; an error is a JSON {"error": TEXT} with 4xx or 5xx.
type EnrolResponse struct {
	Agent     pipeline.AgentID  `json:"agent"`
	Pool      pipeline.PoolName `json:"pool"`
	Untrusted bool              `json:"untrusted,omitempty"`
	Server    string            `json:"server"`
}

// SignedHello is what an agent signs to answer a challenge.
func SignedHello(nonce, server string) []byte {
	return []byte("maestro agent hello v1\x00" + nonce + "\x00" + server)
}

// SignedEnrol is what an agent signs when it enrols.
func SignedEnrol(token string) []byte { return []byte("maestro agent enrol v1\x00" + token) }

func (*Challenge) kind() string   { return "challenge" }
func (*Hello) kind() string       { return "hello" }
func (*Welcome) kind() string     { return "welcome" }
func (*Refused) kind() string     { return "refused" }
func (*Beat) kind() string        { return "beat" }
func (*BeatAck) kind() string     { return "beat_ack" }
func (*Facts) kind() string       { return "facts" }
func (*Offer) kind() string       { return "offer" }
func (*Accept) kind() string      { return "accept" }
func (*Decline) kind() string     { return "decline" }
func (*Go) kind() string          { return "go" }
func (*Started) kind() string     { return "started" }
func (*Note) kind() string        { return "note" }
func (*Result) kind() string      { return "result" }
func (*Ack) kind() string         { return "ack" }
func (*Fenced) kind() string      { return "fenced" }
func (*Cancel) kind() string      { return "cancel" }
func (*LogAck) kind() string      { return "log_ack" }
func (*Forget) kind() string      { return "forget" }
func (*Unsupported) kind() string { return "unsupported" }

var makers = map[string]func() Message{}

func init() {
	for _, f := range []func() Message{
		func() Message { return new(Challenge) }, func() Message { return new(Hello) },
		func() Message { return new(Welcome) }, func() Message { return new(Refused) },
		func() Message { return new(Beat) }, func() Message { return new(BeatAck) },
		func() Message { return new(Facts) }, func() Message { return new(Offer) },
		func() Message { return new(Accept) }, func() Message { return new(Decline) },
		func() Message { return new(Go) }, func() Message { return new(Started) },
		func() Message { return new(Note) }, func() Message { return new(Result) },
		func() Message { return new(Ack) }, func() Message { return new(Fenced) },
		func() Message { return new(Cancel) }, func() Message { return new(LogAck) },
		func() Message { return new(Forget) }, func() Message { return new(Unsupported) },
	} {
		makers[f().kind()] = f
	}
}

type envelope struct {
	Kind string          `json:"kind"`
	Body json.RawMessage `json:"body"`
}

// UnknownError is returned by Decode for a kind that this build does not know.
type UnknownError struct{ Kind string }

func (e *UnknownError) Error() string { return fmt.Sprintf("message of unknown kind %q", e.Kind) }

// Encode returns the text frame of m.
func Encode(m Message) ([]byte, error) {
	body, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", m.kind(), err)
	}
	b, err := json.Marshal(envelope{m.kind(), body})
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", m.kind(), err)
	}
	if len(b) > MaxFrame {
		return nil, fault.New(fault.Invalid, "encode %s: %d bytes, most is %d", m.kind(), len(b), MaxFrame)
	}
	return b, nil
}

// Decode reads a text frame. What cannot be read is fault.Invalid, an unknown
// kind is an *UnknownError.
func Decode(b []byte) (Message, error) {
	var e envelope
	if err := json.Unmarshal(b, &e); err != nil {
		return nil, fault.New(fault.Invalid, "decode message: %w", err)
	}
	mk, ok := makers[e.Kind]
	if !ok {
		const most = 40
		return nil, &UnknownError{e.Kind[:min(most, len(e.Kind))]}
	}
	m := mk()
	if len(e.Body) == 0 {
		return nil, fault.New(fault.Invalid, "decode %s: no body", e.Kind)
	}
	if err := json.Unmarshal(e.Body, m); err != nil {
		return nil, fault.New(fault.Invalid, "decode %s: %w", e.Kind, err)
	}
	return m, nil
}

// LogFrame carries bytes of an attempt's log: Data starts at Offset.
type LogFrame struct {
	Attempt pipeline.AttemptID
	Token   pipeline.Token
	Offset  int64
	Data    []byte
}

// A log frame is: version 1, attempt (26 bytes), incarnation, epoch, offset (8
// bytes each, big endian), CRC-32C of the data (4 bytes), data.
const (
	logVersion  = 1
	attemptLen  = 26
	logHeader   = 1 + attemptLen + 8 + 8 + 8 + 4
	maxLogBytes = logHeader + MaxLogFrame
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// EncodeLog returns the binary frame of f.
func EncodeLog(f LogFrame) ([]byte, error) {
	if len(f.Attempt) != attemptLen || len(f.Data) == 0 || len(f.Data) > MaxLogFrame {
		return nil, fault.New(fault.Invalid, "encode log: attempt %q with %d bytes", f.Attempt, len(f.Data))
	}
	b := make([]byte, 0, logHeader+len(f.Data))
	b = append(b, logVersion)
	b = append(b, f.Attempt...)
	b = binary.BigEndian.AppendUint64(b, uint64(f.Token.Incarnation))
	b = binary.BigEndian.AppendUint64(b, uint64(f.Token.Epoch))
	b = binary.BigEndian.AppendUint64(b, uint64(f.Offset))
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(f.Data, castagnoli))
	return append(b, f.Data...), nil
}

// DecodeLog reads a binary frame; Data shares b's memory. Anything off is fault.Invalid.
func DecodeLog(b []byte) (LogFrame, error) {
	if len(b) <= logHeader || len(b) > maxLogBytes || b[0] != logVersion {
		return LogFrame{}, fault.New(fault.Invalid, "decode log: frame of %d bytes is not a log frame", len(b))
	}
	p := b[1+attemptLen:]
	f := LogFrame{
		Attempt: pipeline.AttemptID(b[1 : 1+attemptLen]),
		Token: pipeline.Token{
			Incarnation: int64(binary.BigEndian.Uint64(p)),
			Epoch:       int64(binary.BigEndian.Uint64(p[8:])),
		},
		Offset: int64(binary.BigEndian.Uint64(p[16:])),
		Data:   b[logHeader:],
	}
	if f.Offset < 0 || f.Token.Epoch < 0 || f.Token.Incarnation < 0 {
		return LogFrame{}, fault.New(fault.Invalid, "decode log: negative number")
	}
	if crc32.Checksum(f.Data, castagnoli) != binary.BigEndian.Uint32(p[24:]) {
		return LogFrame{}, fault.New(fault.Invalid, "decode log: checksum of %d bytes at %d is wrong", len(f.Data), f.Offset)
	}
	return f, nil
}
