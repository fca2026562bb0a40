package config_test

import (
	"strings"
	"testing"

	"github.com/maestro-cd/maestro/internal/config"
	"github.com/maestro-cd/maestro/internal/fault"
)

func TestFormatKeepsCommentsAndIsStable(t *testing.T) {
	t.Parallel()
	const messy, neat = "package ops\n// why\na:   1 // here\nlonger:2\n", "package ops\n\n// why\na:      1 // here\nlonger: 2\n"
	got, err := config.Format("x.cue", []byte(messy))
	if err != nil || string(got) != neat {
		t.Errorf("got %q, %v; want %q", got, err, neat)
	}
	if again, err := config.Format("x.cue", got); err != nil || string(again) != string(got) {
		t.Errorf("formatted twice: %q, %v", again, err)
	}
}

func TestFormatNamesThePlaceOfAMistake(t *testing.T) {
	t.Parallel()
	_, err := config.Format("dir/x.cue", []byte("a: 1\nb: {\n"))
	if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "dir/x.cue:") {
		t.Errorf("error %v does not name the place", err)
	}
}

func FuzzFormat(f *testing.F) {
	f.Add([]byte("a: {b: 1}\n"))
	f.Add([]byte("\"\\(x"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if out, err := config.Format("x.cue", text); err == nil {
			if _, err := config.Format("x.cue", out); err != nil {
				t.Errorf("what was formatted cannot be read: %v\n%s", err, out)
			}
		}
	})
}
