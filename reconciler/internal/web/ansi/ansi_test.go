package ansi_test

import (
	"strings"
	"testing"

	"golang.org/x/net/html"

	"github.com/maestro-cd/maestro/reconciler/internal/web/ansi"
)

func TestLineBecomesHTML(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, line, want string }{
		{"plain text is itself", "hello  world", "hello  world"},
		{"markup is escaped", `<img src=x onerror="a('b')">&`, `&lt;img src=x onerror=&#34;a(&#39;b&#39;)&#34;&gt;&amp;`},
		{"sixteen colours", "\x1b[31mred\x1b[0m \x1b[1;92mok", `<span class="f1">red</span> <span class="f10 bold">ok</span>`},
		{"palette colour", "\x1b[38;5;208morange\x1b[39m.", `<span class="f208">orange</span>.`},
		{"true colour is the nearest of the palette", "\x1b[48;2;255;0;0mx", `<span class="b196">x</span>`},
		{"colons separate too", "\x1b[38:5:9mx", `<span class="f9">x</span>`},
		{"reverse swaps", "\x1b[7mx", `<span class="f0 b7">x</span>`},
		{"attributes end one by one", "\x1b[1;3;4;9ma\x1b[22;23;24;29mb", `<span class="bold ital ul strike">a</span>b`},
		{"private modes are no colours", "\x1b[?25l\x1b[>4;1mx", "x"},
		{"carriage return overwrites", "10%\r20%\r100% done", "100% done"},
		{"a shorter text leaves the end of the longer", "abcdef\rXY", "XYcdef"},
		{"erase takes the rest", "abcdef\r\x1b[KXY", "XY"},
		{"a last carriage return is the line end", "abc\r", "abc"},
		{"backspace moves back", "abc\b\bX", "aXc"},
		{"title and clipboard commands are dropped", "a\x1b]0;owned\x07b\x1b]52;c;ZXZpbA==\x1b\\c", "abc"},
		{"link", "\x1b]8;;https://e.org/?a=1&b=2\x1b\\here\x1b]8;;\x1b\\.", `<a href="https://e.org/?a=1&amp;b=2" rel="noopener noreferrer nofollow" target="_blank">here</a>.`},
		{"script link is text", "\x1b]8;;javascript:alert(1)\x07here\x1b]8;;\x07", "here"},
		{"data link is text", "\x1b]8;;data:text/html,x\x07here", "here"},
		{"bidirectional control is shown", "a\u202eb", `a<span class="hid">‹U+202E›</span>b`},
		{"nul is shown", "a\x00b", `a<span class="hid">‹U+0000›</span>b`},
		{"bytes that are no text are replaced", "a\xffb", "a\ufffdb"},
		{"unfinished sequence is dropped", "ab\x1b[31", "ab"},
		{"unfinished string is dropped", "ab\x1b]8;;http://e.org", "ab"},
		{"charset choice is dropped", "\x1b(Bx", "x"},
		{"tab stays", "a\tb", "a\tb"},
		{"empty", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if got := ansi.HTML([]byte(c.line)); got != c.want {
				t.Errorf("HTML(%q)\n got %s\nwant %s", c.line, got, c.want)
			}
		})
	}
}

func TestLongLineIsCut(t *testing.T) {
	t.Parallel()
	got := ansi.Text([]byte(strings.Repeat("é", ansi.MaxLine)))
	if !strings.HasSuffix(got, "cut at 8 KiB)") || len(got) > ansi.MaxLine+64 {
		t.Errorf("got %d bytes ending in %q", len(got), got[len(got)-40:])
	}
	if strings.Contains(got, "\ufffd") {
		t.Error("a character was cut in two")
	}
}

func FuzzHTMLIsInert(f *testing.F) {
	for _, s := range []string{
		"<script>alert(1)</script>", "\x1b[31m<b>\x1b[0m", "\x1b]8;;https://a.b/\"onload=x\x07t\x1b]8;;\x07",
		"\x1b]8;;javascript:x\x07t", "a\rb\x1b[K\x1b[1Kc", "\x1b[38;2;1;2;3mx\x1b[48;5;300my", "\xff\xfe\x00\u202e",
		"\x1bP1$r\x1b\\", "\x1b[", "\x1b", "</title>", "\x1b[2K\r\b\b",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		out := ansi.HTML(line)
		z := html.NewTokenizer(strings.NewReader(out))
		var text strings.Builder
		var open []string
		for {
			switch z.Next() {
			case html.ErrorToken:
				if len(open) != 0 {
					t.Fatalf("%q leaves %v open", out, open)
				}
				if got, want := text.String(), ansi.Text(line); got != normal(want) {
					t.Fatalf("text of HTML %q differs from Text %q", got, want)
				}
				return
			case html.TextToken:
				text.Write(z.Text())
			case html.StartTagToken:
				tag := z.Token()
				checkTag(t, tag)
				open = append(open, tag.Data)
			case html.EndTagToken:
				name := z.Token().Data
				if len(open) == 0 || open[len(open)-1] != name {
					t.Fatalf("%q closes %s, open is %v", out, name, open)
				}
				open = open[:len(open)-1]
			default:
				t.Fatalf("%q has a token that is neither text nor tag", out)
			}
		}
	})
}

// normal does to text what the tokenizer does: there is no NUL and no carriage
// return left, so nothing but unescaping happens.
func normal(s string) string { return html.UnescapeString(html.EscapeString(s)) }

func checkTag(t *testing.T, tag html.Token) {
	t.Helper()
	for _, a := range tag.Attr {
		switch {
		case a.Key == "class" && tag.Data == "span":
		case tag.Data == "a" && (a.Key == "rel" || a.Key == "target"):
		case tag.Data == "a" && a.Key == "href" && ansi.SafeURL(a.Val) == a.Val:
		default:
			t.Fatalf("tag %v has attribute %s=%q", tag.Data, a.Key, a.Val)
		}
	}
	if tag.Data != "a" && tag.Data != "span" {
		t.Fatalf("tag %q", tag.Data)
	}
}
