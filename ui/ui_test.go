package ui_test

import (
	"bytes"
	"math"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/ui"
)

func load(t *testing.T) *ui.UI {
	t.Helper()
	u, err := ui.Load()
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func asset(t *testing.T, name string) string {
	t.Helper()
	u := load(t)
	a, ok := u.Asset(u.URL(name))
	if !ok {
		t.Fatalf("no asset %s", name)
	}
	return string(a.Body)
}

func TestAssetsNameTheirVersion(t *testing.T) {
	t.Parallel()
	u := load(t)
	if len(u.Assets()) < 10 {
		t.Errorf("assets %v", u.Assets())
	}
	for _, p := range u.Assets() {
		if !regexp.MustCompile(`^/assets/[0-9a-f]{16}/[a-z-]+\.(css|js|svg)$`).MatchString(p) {
			t.Errorf("asset %s", p)
		}
	}
}

func TestARenderThatFailsWritesNothing(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	if err := load(t).Render(&b, "board", struct{}{}); err == nil || b.Len() != 0 {
		t.Errorf("wrote %d bytes, error %v", b.Len(), err)
	}
}

// TestEveryStateHasItsShape holds the sprite and the style sheet to the words of
// the vocabulary: a state without a glyph would be told by its colour alone.
func TestEveryStateHasItsShape(t *testing.T) {
	t.Parallel()
	sprite, style := asset(t, "sprite.svg"), asset(t, "style.css")
	words := []string{"blocked", "online", "stalled", "offline"}
	for _, s := range pipeline.States() {
		words = append(words, string(s))
	}
	shapes := map[string]string{}
	for _, w := range words {
		m := regexp.MustCompile(`<symbol id="g-` + w + `"[^>]*>(.*?)</symbol>`).FindStringSubmatch(sprite)
		if m == nil {
			t.Errorf("no glyph for %s", w)
			continue
		}
		if other := shapes[m[1]]; other != "" {
			t.Errorf("%s and %s have the same glyph", w, other)
		}
		shapes[m[1]] = w
	}
	for _, s := range pipeline.States() {
		for _, prefix := range []string{".c-"} {
			if !regexp.MustCompile(regexp.QuoteMeta(prefix+string(s)) + `\b`).MatchString(style) {
				t.Errorf("no colour %s%s", prefix, s)
			}
		}
	}
	for _, filled := range []string{"failure", "error", "timeout", "in_doubt", "held", "blocked"} {
		if !strings.Contains(style, ".st-"+filled) {
			t.Errorf("%s needs somebody and is not filled", filled)
		}
	}
}

// pairs of ink and ground that text is set in, with the least contrast of WCAG AA.
var pairs = []struct {
	ink, ground string
	least       float64
}{
	{"ink", "bg", 7},
	{"ink", "panel", 7},
	{"ink", "hover", 7},
	{"ink", "bad-ground", 7},
	{"muted", "bg", 4.5},
	{"muted", "panel", 4.5},
	{"muted", "hover", 4.5},
	{"link", "bg", 4.5},
	{"link", "panel", 4.5},
	{"link", "hover", 4.5},
	{"link", "bad-ground", 4.5},
	{"idle", "panel", 4.5},
	{"run", "panel", 4.5},
	{"good", "panel", 4.5},
	{"bad", "panel", 4.5},
	{"ask", "panel", 3.5},
	{"bad", "bg", 4.5},
	{"bad", "bad-ground", 4.5},
	{"on-bad", "bad", 4.5},
	{"on-ask", "ask", 4.5},
	{"on-idle", "idle", 4.5},
	{"log-ink", "log", 7},
	{"log-muted", "log", 4.5},
	{"log-link", "log", 4.5},
	{"log-ink", "log-mark", 7},
}

func TestInkIsReadOnItsGround(t *testing.T) {
	t.Parallel()
	style := asset(t, "style.css")
	for _, p := range pairs {
		for theme, name := range []string{"light", "dark"} {
			ink, ground := token(t, style, p.ink, theme), token(t, style, p.ground, theme)
			if got := contrast(ink, ground); got < p.least {
				t.Errorf("%s: %s %s on %s %s has contrast %.2f, want %.1f", name, p.ink, ink, p.ground, ground, got, p.least)
			}
		}
	}
}

func TestTerminalColoursAreReadOnTheLog(t *testing.T) {
	t.Parallel()
	style := asset(t, "style.css")
	ground := token(t, style, "log", 0)
	for i := range 16 {
		m := regexp.MustCompile(`\.f` + strconv.Itoa(i) + ` \{ color: (#[0-9a-f]{6})`).FindStringSubmatch(style)
		if m == nil {
			t.Errorf("no colour f%d", i)
		} else if got := contrast(m[1], ground); got < 3.5 {
			t.Errorf("f%d %s has contrast %.2f", i, m[1], got)
		}
	}
}

// token reads a colour of the style sheet; theme 0 is light.
func token(t *testing.T, style, name string, theme int) string {
	t.Helper()
	m := regexp.MustCompile(`--` + name + `: (?:light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\)|(#[0-9a-f]{6}));`).FindStringSubmatch(style)
	if m == nil {
		t.Fatalf("no token --%s", name)
	}
	if m[3] != "" {
		return m[3]
	}
	return m[1+theme]
}

func contrast(a, b string) float64 {
	x, y := luminance(a), luminance(b)
	return (max(x, y) + 0.05) / (min(x, y) + 0.05)
}

func luminance(hex string) float64 {
	sum := 0.0
	for i, weight := range []float64{0.2126, 0.7152, 0.0722} {
		n, _ := strconv.ParseUint(hex[1+2*i:3+2*i], 16, 8)
		c := float64(n) / 255
		if c <= 0.03928 {
			c /= 12.92
		} else {
			c = math.Pow((c+0.055)/1.055, 2.4)
		}
		sum += weight * c
	}
	return sum
}

func TestDurationsAreShort(t *testing.T) {
	t.Parallel()
	for want, d := range map[string]time.Duration{
		"0.0s": 0, "1ms": time.Microsecond, "40ms": 40 * time.Millisecond, "1.2s": 1240 * time.Millisecond, "59s": 59 * time.Second, "1m00s": time.Minute, "3m07s": 187 * time.Second,
		"1h04m": 64*time.Minute + 59*time.Second, "47h59m": 48*time.Hour - time.Second, "3d02h": 74 * time.Hour, "": -time.Second,
	} {
		if got := ui.Duration(d); got != want {
			t.Errorf("%v is %q, want %q", d, got, want)
		}
	}
}

func TestAgoUsesOneUnit(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 14, 10, 0, 0, 0, time.UTC)
	for want, d := range map[string]time.Duration{"just now": 2 * time.Second, "59s ago": 59 * time.Second, "2m ago": 2 * time.Minute, "47h ago": 47 * time.Hour, "2d ago": 48 * time.Hour, "in 3m": -3 * time.Minute} {
		if got := ui.Ago(now, now.Add(-d)); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
}

func TestHiddenCharactersAreShown(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"plain é 漢": "plain é 漢", "a\u202eb": "a‹U+202E›b", "a\u200bb": "a‹U+200B›b", "a\nb\tc": "a b c", "a\x00b": "a‹U+0000›b", "a\xffb": "a\ufffdb", "\U000e0041": "‹U+E0041›",
	} {
		if got := ui.Visible(in); got != want {
			t.Errorf("%q is %q, want %q", in, got, want)
		}
	}
}

func TestThousandsAreSetApart(t *testing.T) {
	t.Parallel()
	for n, want := range map[int]string{0: "0", 999: "999", 1000: "1\u2009000", 1234567: "1\u2009234\u2009567", -1234: "-1\u2009234"} {
		if got := ui.Count(n); got != want {
			t.Errorf("%d is %q, want %q", n, got, want)
		}
	}
}
