package fault_test

import (
	"errors"
	"fmt"
	"io/fs"
	"testing"

	"github.com/maestro-cd/maestro/internal/fault"
)

func TestKindSurvivesWrapping(t *testing.T) {
	t.Parallel()
	base := fault.New(fault.NotFound, "open %s: %w", "x", fs.ErrNotExist)
	err := fmt.Errorf("read run r1: %w", base)
	if got := fault.KindOf(err); got != fault.NotFound {
		t.Errorf("KindOf = %q, want %q", got, fault.NotFound)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		t.Error("the cause is lost")
	}
	if got, want := err.Error(), "read run r1: open x: file does not exist"; got != want {
		t.Errorf("message = %q, want %q", got, want)
	}
}

func TestOuterKindWins(t *testing.T) {
	t.Parallel()
	err := fault.New(fault.Unavailable, "poll: %w", fault.New(fault.Invalid, "bad url"))
	if got := fault.KindOf(err); got != fault.Unavailable {
		t.Errorf("KindOf = %q, want unavailable", got)
	}
}

func TestForeignErrorIsInternalAndNilHasNoKind(t *testing.T) {
	t.Parallel()
	if got := fault.KindOf(errors.New("x")); got != fault.Internal {
		t.Errorf("KindOf = %q, want internal", got)
	}
	if got := fault.KindOf(nil); got != "" {
		t.Errorf("KindOf(nil) = %q, want empty", got)
	}
	if fault.Is(nil, fault.Internal) {
		t.Error("nil is of no kind")
	}
}
