package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

// room is a flag for a size, as 512MiB.
type room int64

var units = []struct {
	name string
	size float64
}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40}, {"B", 1}}

// Set reads a number with a unit.
func (b *room) Set(s string) error {
	for _, u := range units {
		number, ok := strings.CutSuffix(s, u.name)
		if !ok {
			continue
		}
		if n, err := strconv.ParseFloat(strings.TrimSpace(number), 64); err == nil && n > 0 && n*u.size < 1<<60 {
			*b = room(n * u.size)
			return nil
		}
	}
	return fault.New(fault.Invalid, "%q is not a size such as 512MiB or 2GiB", s)
}

func (b *room) String() string {
	if *b == 0 {
		return ""
	}
	return strings.ReplaceAll(size(int64(*b)), " ", "")
}

// Type is what the help shows.
func (*room) Type() string { return "size" }

// mark is how much room there must be.
func (b room) mark(s store.Space) int64 {
	const least, part = 512 << 20, 50 // 2%
	if b > 0 {
		return int64(b)
	}
	return max(least, s.Total/part)
}

// size writes bytes as people read them.
func size(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	v, i := float64(n)/unit, 0
	for ; v >= unit && i < 3; i++ {
		v /= unit
	}
	return fmt.Sprintf("%.1f %ciB", v, "KMGT"[i])
}
