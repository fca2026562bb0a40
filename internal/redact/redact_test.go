package redact_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/url"
	"os/exec"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/redact"
)

const pem = "-----BEGIN PRIVATE KEY-----\n" +
	"CANARYpemMIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt\n" +
	"9Us8cKjMzEfYyjiWA4R4/M2bS1GB4t7NXp98C3SC6dVMvDuictGeurT8jNbvJZHtCSu\n" +
	"AB==\n" +
	"-----END PRIVATE KEY-----\n"

func mask(t testing.TB, secrets []redact.Secret, chunks ...string) string {
	t.Helper()
	var out bytes.Buffer
	w := redact.New(&out, secrets)
	for _, c := range chunks {
		if n, err := w.Write([]byte(c)); err != nil || n != len(c) {
			t.Fatalf("Write(%q) = %d, %v", c, n, err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestEveryFormIsMasked(t *testing.T) {
	t.Parallel()
	b64 := base64.StdEncoding.EncodeToString
	for _, value := range []string{
		"CANARY-a/b+c?d=e&f", `CANARY "quoted" 'single' \ $x`, "CANARY ümläut 日本 😀", pem,
	} {
		js, err := json.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string]string{
			"plain":            value,
			"line by line":     strings.ReplaceAll(value, "\n", "\n  > "),
			"crlf":             strings.ReplaceAll(value, "\n", "\r\n"),
			"base64":           b64([]byte(value)),
			"base64 no pad":    base64.RawStdEncoding.EncodeToString([]byte(value)),
			"base64url":        base64.URLEncoding.EncodeToString([]byte(value)),
			"base64 offset 1":  b64([]byte("x" + value + "tail")),
			"base64 offset 2":  b64([]byte("xy" + value + "ta")),
			"base64 wrapped":   wrap(b64([]byte(value)), 76),
			"base64 wrapped64": wrap(b64([]byte(value)), 64),
			"hex":              hex.EncodeToString([]byte(value)),
			"HEX":              strings.ToUpper(hex.EncodeToString([]byte(value))),
			"hex wrapped":      wrap(hex.EncodeToString([]byte(value)), 60),
			"query":            url.QueryEscape(value),
			"path":             url.PathEscape(value),
			"json":             string(js),
			"json twice":       `{"value":` + string(js) + `}`,
			"go quoted":        fmt.Sprintf("%q", value),
			"shell quoted":     "'" + strings.ReplaceAll(value, "'", `'\''`) + "'",
		} {
			t.Run(fmt.Sprintf("%.12q as %s", value, name), func(t *testing.T) {
				t.Parallel()
				got := mask(t, []redact.Secret{{Name: "key", Value: value}}, "a ", text, " z")
				if !strings.Contains(got, "***key***") {
					t.Errorf("not masked: %q", got)
				}
				for _, f := range redact.Forms(value) {
					if strings.Contains(got, f) {
						t.Errorf("%q shows %q", got, f)
					}
				}
				if !strings.HasPrefix(got, "a ") || !strings.HasSuffix(got, " z") {
					t.Errorf("text around the secret was lost: %q", got)
				}
			})
		}
	}
}

// What real programs print is masked, not only what this package thinks they do.
func TestToolsCannotShowIt(t *testing.T) {
	t.Parallel()
	const value = `CANARY it's "a" \ $ecret/+` + "\n" + `CANARY second ` + "`line`"
	for _, script := range []string{
		`set -x; : "$S"`, `printf %s "$S" | base64`, `printf %s "$S" | base64 -w0`, `echo "x$S" | base64`,
		`printf %s "$S" | xxd -p`, `printf %q "$S"`, `echo "${S@Q}"`, `declare -p S`, `export -p | grep -A1 CANARY`,
		`python3 -c 'import json,os,urllib.parse as u,shlex; s=os.environ["S"]; print(json.dumps([s]), u.quote(s), u.quote_plus(s), shlex.quote(s))'`,
	} {
		t.Run(script, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command("bash", "-c", script)
			cmd.Env = []string{"PATH=/usr/bin:/bin", "S=" + value}
			raw, err := cmd.CombinedOutput()
			if err != nil {
				t.Skipf("%v: %s", err, raw)
			}
			got := mask(t, []redact.Secret{{Name: "s", Value: value}}, string(raw))
			if strings.Contains(got, "CANARY") || strings.Contains(got, "ecret") || !strings.Contains(got, "***s***") {
				t.Errorf("printed %s\nmasked  %s", raw, got)
			}
		})
	}
}

func wrap(s string, columns int) string {
	var b strings.Builder
	for ; len(s) > columns; s = s[columns:] {
		b.WriteString(s[:columns] + "\n")
	}
	return b.String() + s
}

// Reversal is outside of what masking promises; the package comment says so.
func TestReversedIsNotMasked(t *testing.T) {
	t.Parallel()
	if got := mask(t, []redact.Secret{{"k", "CANARY-1234"}}, "4321-YRANAC"); got != "4321-YRANAC" {
		t.Errorf("got %q", got)
	}
}

// No form of a secret leaves the Writer, whatever surrounds it and wherever the
// stream is cut; and what is no secret comes through.
func TestNoFormLeavesForAnyChunking(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		value := rapid.Custom(func(t *rapid.T) string {
			// Few letters make prefixes and overlaps; without "*" no form can arise
			// from a placeholder and what follows it.
			return rapid.StringOfN(rapid.RuneFrom([]rune("ab/'\n ü")), 8, 24, -1).Draw(t, "value")
		}).Filter(func(s string) bool { return redact.Check(redact.Secret{Value: s}) == nil })
		var secrets []redact.Secret
		var all []string
		for i, v := range rapid.SliceOfN(value, 1, 3).Draw(t, "values") {
			secrets = append(secrets, redact.Secret{Name: fmt.Sprintf("S%d", i), Value: v})
			all = append(all, redact.Forms(v)...)
		}
		piece := rapid.OneOf(rapid.SampledFrom(all), rapid.StringOfN(rapid.RuneFrom([]rune("ab/'\n ü")), 0, 9, -1),
			rapid.Custom(func(t *rapid.T) string {
				f := rapid.SampledFrom(all).Draw(t, "form")
				return f[:rapid.IntRange(0, len(f)).Draw(t, "cut")]
			}))
		text := strings.Join(rapid.SliceOfN(piece, 0, 6).Draw(t, "text"), "")
		var chunks []string
		for rest := text; rest != ""; {
			n := rapid.IntRange(1, len(rest)).Draw(t, "chunk")
			chunks, rest = append(chunks, rest[:n]), rest[n:]
		}
		var out bytes.Buffer
		w := redact.New(&out, secrets)
		for _, c := range chunks {
			if _, err := w.Write([]byte(c)); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		hidden := false
		for _, f := range all {
			hidden = hidden || strings.Contains(text, f)
			if len(f) >= 8 && strings.Contains(out.String(), f) {
				t.Fatalf("%q shows form %q", out.String(), f)
			}
		}
		if !hidden && !strings.Contains(out.String(), "***") && out.String() != text {
			t.Fatalf("%q became %q", text, out.String())
		}
	})
}

func TestCutAnywhereGivesTheSameOutput(t *testing.T) {
	t.Parallel()
	secrets := []redact.Secret{{"pem", pem}, {"tok", "CANARY-tok-0123456789"}}
	text := "start\n" + pem + "CANARY-tok-01234 CANARY-tok-0123456789" + hex.EncodeToString([]byte(pem)) + "end\n"
	want := mask(t, secrets, text)
	for i := range len(text) {
		if got := mask(t, secrets, text[:i], text[i:]); got != want {
			t.Fatalf("cut at %d:\ngot  %q\nwant %q", i, got, want)
		}
	}
	if got := mask(t, secrets, strings.Split(text, "")...); got != want {
		t.Errorf("byte by byte:\ngot  %q\nwant %q", got, want)
	}
}

func TestOverlappingSecretsAreMaskedWhole(t *testing.T) {
	t.Parallel()
	got := mask(t, []redact.Secret{{"a", "abcdefgh12"}, {"b", "gh12ijklmnop"}}, "<abcdefgh12ijklmnop>")
	if got != "<***a***>" {
		t.Errorf("got %q", got)
	}
	one := []redact.Secret{{"a", "abcdefgh"}, {"b", "hijklmno"}}
	if got := mask(t, one, "<abcdefghijklmno>"); got != "<***a***>" {
		t.Errorf("one byte shared: %q", got)
	}
	if got := mask(t, one, "<abcdefghhijklmno>"); got != "<***a******b***>" {
		t.Errorf("side by side: %q", got)
	}
}

func TestLinesAreEmittedAtOnce(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	w := redact.New(&out, []redact.Secret{{"key", "CANARY-0123456789"}})
	for _, step := range []struct{ write, want string }{
		{"compiling\n", "compiling\n"},
		{"step CAN", "step "},
		{"ADA\n", "CANADA\n"},
		{"CANARY-012345678", ""},
		{"9\n", "***key***\n"},
	} {
		if _, err := io.WriteString(w, step.write); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		if got := out.String(); got != step.want {
			t.Fatalf("after %q: %q came out, want %q", step.write, got, step.want)
		}
		out.Reset()
	}
}

func TestHalfASecretAtTheEndIsMasked(t *testing.T) {
	t.Parallel()
	s := []redact.Secret{{"key", "CANARY-0123456789"}}
	if got := mask(t, s, "killed at CANARY-01234"); got != "killed at ***key***" {
		t.Errorf("got %q", got)
	}
	if got := mask(t, s, "the end: CAN"); got != "the end: CAN" {
		t.Errorf("got %q", got)
	}
}

func TestWithoutSecretsNothingIsCopied(t *testing.T) {
	t.Parallel()
	p := []byte("hello")
	w := redact.New(writerFunc(func(b []byte) (int, error) {
		if &b[0] != &p[0] {
			t.Error("the bytes were copied")
		}
		return len(b), nil
	}), nil)
	if _, err := w.Write(p); err != nil {
		t.Fatal(err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func TestWriterErrorIsKept(t *testing.T) {
	t.Parallel()
	full := errors.New("disk full")
	for _, secrets := range [][]redact.Secret{nil, {{"k", "CANARY-1234"}}} {
		w := redact.New(writerFunc(func([]byte) (int, error) { return 0, full }), secrets)
		for range 2 {
			if _, err := w.Write([]byte("x\n")); !errors.Is(err, full) {
				t.Errorf("Write = %v, want %v", err, full)
			}
		}
		if err := w.Close(); !errors.Is(err, full) {
			t.Errorf("Close = %v, want %v", err, full)
		}
	}
}

func TestCheckRefusesWhatCannotBeMasked(t *testing.T) {
	t.Parallel()
	for _, v := range []string{"", "a", "hunter2", "         ", " abc\n\n\n\n\n\n", strings.Repeat("x", redact.MaxLength+1)} {
		err := redact.Check(redact.Secret{Name: "pw", Value: v})
		if !fault.Is(err, fault.Invalid) {
			t.Errorf("Check(%.10q) = %v, want invalid", v, err)
		} else if strings.Contains(err.Error(), "hunter") || !strings.Contains(err.Error(), "pw") {
			t.Errorf("error tells the value, or not the name: %v", err)
		}
	}
	if err := redact.Check(redact.Secret{Name: "pw", Value: "hunter22"}); err != nil {
		t.Error(err)
	}
}

// New is told to mask; it does not let a value through because Check was forgotten.
func TestShortValueIsMaskedIfGivenAnyway(t *testing.T) {
	t.Parallel()
	if got := mask(t, []redact.Secret{{"pin", "4711"}, {"none", ""}}, "pin 47", "11!"); got != "pin ***pin***!" {
		t.Errorf("got %q", got)
	}
}

func TestNameThatIsASecretIsNotShown(t *testing.T) {
	t.Parallel()
	if got := mask(t, []redact.Secret{{"CANARY-1234", "CANARY-1234"}}, "x CANARY-1234"); got != "x ***" {
		t.Errorf("got %q", got)
	}
}

func TestSecretDoesNotPrint(t *testing.T) {
	t.Parallel()
	s := redact.Secret{Name: "k", Value: "CANARY-1234"}
	if got := fmt.Sprintf("%v %+v %#v %s", s, s, s, s); strings.Contains(got, "CANARY") {
		t.Errorf("printed %s", got)
	}
}

func FuzzMask(f *testing.F) {
	f.Add("CANARY-0123", "a CANARY-0123 b", 3)
	f.Add(pem, pem+pem, 40)
	f.Add("aaaaaaaaaa", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", 9)
	f.Add("'\"\\$`\n'\"\\", `'\''"\\`, 1)
	f.Fuzz(func(t *testing.T, value, text string, cut int) {
		s := redact.Secret{Name: "n", Value: value}
		if redact.Check(s) != nil || strings.Contains(value, "*") || strings.Contains(text, "*") {
			return
		}
		cut = max(0, min(cut, len(text)))
		got := mask(t, []redact.Secret{s}, text[:cut], value, text[cut:])
		for _, form := range redact.Forms(value) {
			if len(form) >= 8 && strings.Contains(got, form) {
				t.Errorf("%q shows %q", got, form)
			}
		}
	})
}

func BenchmarkMask(b *testing.B) {
	text := buildLog(1 << 20)
	for _, n := range []int{0, 3, 20} {
		secrets := []redact.Secret{{"pem", pem}, {"token", "CANARYghp_16C7e42F292c6912E7710c838347Ae178B4a"}, {"password", "CANARY hunter2 & more"}}
		for i := range 17 {
			secrets = append(secrets, redact.Secret{Name: fmt.Sprint(i), Value: fmt.Sprintf("%x-CANARY-%d", i*7919, i)})
		}
		b.Run(fmt.Sprintf("secrets=%d", n), func(b *testing.B) {
			w := redact.New(io.Discard, secrets[:n])
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				for rest := text; len(rest) > 0; rest = rest[min(32<<10, len(rest)):] {
					if _, err := w.Write(rest[:min(32<<10, len(rest))]); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}

func BenchmarkNew(b *testing.B) {
	s := []redact.Secret{{"pem", strings.Repeat(pem[28:160], 12)}, {"token", "CANARYghp_16C7e42F292c6912E7710c838347Ae178B4a"}}
	for b.Loop() {
		redact.New(io.Discard, s)
	}
}

// buildLog looks like the output of a build: words, numbers, paths.
func buildLog(size int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	words := strings.Fields("compiling github.com/acme/widget/internal/store [INFO] Downloaded from central: https://repo/ WARN 0x7ffee4 -----BEGIN test passed in 0.031s CANARY ERROR at line base64 Zm9vYmFyYmF6")
	var b bytes.Buffer
	for b.Len() < size {
		for range r.IntN(12) + 3 {
			b.WriteString(words[r.IntN(len(words))])
			b.WriteByte(' ')
		}
		b.WriteByte('\n')
	}
	return b.Bytes()
}
