package wire_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/wire"
)

const attempt = pipeline.AttemptID("01JDXXXXXXXXXXXXXXXXXXXXXX")

func TestMessageSurvivesTheWire(t *testing.T) {
	t.Parallel()
	exit := 3
	for _, m := range []wire.Message{
		&wire.Challenge{Nonce: "n", Server: "s"},
		&wire.Offer{Attempt: attempt, Token: pipeline.Token{Incarnation: 1, Epoch: 2}, Spec: wire.Spec{
			Composition: "hello", Fields: []byte(`{"a":1}`), Plugin: wire.Plugin{Programs: []pipeline.Program{{Argv: []string{"sh"}}}},
		}},
		&wire.Go{Attempt: attempt, Secrets: map[string]wire.Redacted{"key": "CANARY-1"}},
		&wire.Result{Attempt: attempt, Result: pipeline.Result{Outcome: pipeline.Failure, Exit: &exit, LogBytes: 7}},
	} {
		b, err := wire.Encode(m)
		if err != nil {
			t.Fatal(err)
		}
		got, err := wire.Decode(b)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(m, got); d != "" {
			t.Errorf("%T changed on the wire (-sent +received):\n%s", m, d)
		}
	}
}

func TestUnknownKindIsTold(t *testing.T) {
	t.Parallel()
	_, err := wire.Decode([]byte(`{"kind":"dance","body":{}}`))
	var unknown *wire.UnknownError
	if !errors.As(err, &unknown) || unknown.Kind != "dance" {
		t.Errorf("Decode = %v, want UnknownError dance", err)
	}
}

func TestMalformedMessageIsInvalid(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"", "{", "null", `{"kind":"beat"}`, `{"kind":"beat","body":[]}`, `{"kind":"beat","body":{"n":"x"}}`, strings.Repeat("[", 100000)} {
		if _, err := wire.Decode([]byte(s)); err == nil {
			t.Errorf("Decode(%.20q) accepted it", s)
		}
	}
}

func TestOversizedMessageIsRefusedBeforeItIsSent(t *testing.T) {
	t.Parallel()
	_, err := wire.Encode(&wire.Decline{Reason: strings.Repeat("x", wire.MaxFrame)})
	if !fault.Is(err, fault.Invalid) {
		t.Errorf("Encode = %v, want invalid", err)
	}
}

func TestSecretsDoNotPrint(t *testing.T) {
	t.Parallel()
	r := wire.Redacted("CANARY-2")
	if s := r.String() + r.GoString(); strings.Contains(s, "CANARY") {
		t.Errorf("a secret printed: %s", s)
	}
}

func TestLogFrameSurvivesAndDamageIsFound(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		f := wire.LogFrame{
			Attempt: attempt,
			Token:   pipeline.Token{Incarnation: rapid.Int64Min(0).Draw(t, "inc"), Epoch: rapid.Int64Min(0).Draw(t, "epoch")},
			Offset:  rapid.Int64Min(0).Draw(t, "off"),
			Data:    rapid.SliceOfN(rapid.Byte(), 1, 300).Draw(t, "data"),
		}
		b, err := wire.EncodeLog(f)
		if err != nil {
			t.Fatal(err)
		}
		got, err := wire.DecodeLog(b)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(f, got); d != "" {
			t.Fatal(d)
		}
		i := rapid.IntRange(len(b)-len(f.Data), len(b)-1).Draw(t, "damaged byte")
		b[i] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		if _, err := wire.DecodeLog(b); !fault.Is(err, fault.Invalid) {
			t.Fatalf("damaged frame was accepted: %v", err)
		}
	})
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"kind":"hello","body":{"versions":[1,1]}}`))
	f.Add([]byte(`{"kind":"result","body":{"result":{"outputs":{"a":[1e999]}}}}`))
	f.Add([]byte{1, 2, 3})
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := wire.Decode(b); err == nil && m == nil {
			t.Error("no message and no error")
		}
		if l, err := wire.DecodeLog(b); err == nil && len(l.Data) == 0 {
			t.Error("an empty log frame was accepted")
		}
	})
}
