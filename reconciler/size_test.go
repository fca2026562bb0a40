package main

import (
	"testing"

	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

func TestSizesAreReadAndWritten(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]room{"512MiB": 512 << 20, "1.5GiB": 3 << 29, "100B": 100, "2 TiB": 2 << 40} {
		var got room
		if err := got.Set(text); err != nil || got != want {
			t.Errorf("%s: got %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "5", "-1GiB", "0B", "GiB", "NaNMiB", "1e300TiB"} {
		var got room
		if err := got.Set(text); err == nil {
			t.Errorf("%q: got %d", text, got)
		}
	}
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1536: "1.5 KiB", 16 << 20: "16.0 MiB", 5 << 40: "5.0 TiB"} {
		if got := size(n); got != want {
			t.Errorf("%d: got %s, want %s", n, got, want)
		}
	}
}

func TestLowWaterIsTheContracts(t *testing.T) {
	t.Parallel()
	for total, want := range map[int64]int64{1 << 30: 512 << 20, 1 << 40: (1 << 40) / 50} {
		if got := room(0).mark(store.Space{Total: total}); got != want {
			t.Errorf("%d: got %d, want %d", total, got, want)
		}
	}
	if got := room(7).mark(store.Space{Total: 1 << 40}); got != 7 {
		t.Errorf("got %d", got)
	}
}
