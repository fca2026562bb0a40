package gitrepo_test

import (
	"bytes"
	"compress/zlib"
	"crypto/sha1" //nolint:gosec // it is what packs are sealed with
	"encoding/binary"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/gitrepo"
)

// pack builds a pack by hand; each object is its type and inflated content.
func pack(count uint32, objects ...any) []byte {
	var b bytes.Buffer
	b.WriteString("PACK")
	_ = binary.Write(&b, binary.BigEndian, uint32(2))
	_ = binary.Write(&b, binary.BigEndian, count)
	for i := 0; i+1 < len(objects); i += 2 {
		kind, data := objects[i].(byte), objects[i+1].([]byte)
		n := len(data)
		c := kind<<4 | byte(n&15)
		for n >>= 4; n > 0; n >>= 7 {
			b.WriteByte(c | 0x80)
			c = byte(n & 0x7f)
		}
		b.WriteByte(c)
		if kind == 7 { // a delta by reference
			b.Write(bytes.Repeat([]byte{0xab}, 20))
		}
		z := zlib.NewWriter(&b)
		_, _ = z.Write(data)
		_ = z.Close()
	}
	sum := sha1.Sum(b.Bytes()) //nolint:gosec // see the import
	return append(b.Bytes(), sum[:]...)
}

func TestHostilePacksFailWithinLimits(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	g.commit("one")
	bare := g.bare()
	s := serve(t, bare)
	const blob, delta = byte(3), byte(7)
	zeros := make([]byte, 3<<20)
	for _, c := range []struct {
		name string
		body []byte
		kind fault.Kind
		says string
	}{
		{"too many objects", pack(10_000_000), fault.Invalid, "objects"},
		{"object too large", pack(1, blob, zeros), fault.Invalid, "object of"},
		{"delta that grows", pack(1, delta, []byte("\x80\x80\x80\x80\x10\x80\x80\x80\x80\x10x")), fault.Invalid, "object of"},
		{"many that are large together", pack(40, many(40, blob, zeros[:1<<20])...), fault.Invalid, "unpack to more"},
		{"too many bytes", bytes.Repeat([]byte("x"), 2<<20), fault.Invalid, "larger than"},
		{"fewer than announced", pack(7, blob, []byte("x")), fault.Unavailable, "damaged or cut short"},
		{"not a pack", []byte("hello"), fault.Unavailable, "not a pack"},
		{"without what was asked for", pack(1, blob, []byte("x")), fault.Unavailable, "missing"},
	} {
		s.say(func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodPost {
				return false
			}
			return page("application/x-git-upload-pack-result", "0008NAK\n"+string(c.body))(w, r)
		})
		dir := filepath.Join(t.TempDir(), "mirror")
		r := over(t, s, bare, gitrepo.Options{Dir: dir, Limits: gitrepo.Limits{PackBytes: 1 << 20, Object: 2 << 20}})
		_, err := r.Fetch(t.Context())
		if fault.KindOf(err) != c.kind || !strings.Contains(fmt.Sprint(err), c.says) {
			t.Errorf("%s: Fetch = %v (%s), want %s that says %q", c.name, err, fault.KindOf(err), c.kind, c.says)
		}
		if left, _ := filepath.Glob(filepath.Join(dir, "tmp", "*")); len(left) > 0 {
			t.Errorf("%s: %v is left", c.name, left)
		}
		s.say(nil)
		if _, err := r.Fetch(t.Context()); err != nil {
			t.Errorf("%s: the next fetch fails too: %v", c.name, err)
		}
	}
}

func many(n int, kind byte, data []byte) (out []any) {
	for range n {
		out = append(out, kind, data)
	}
	return out
}

func TestDamagedMirrorHealsItself(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	g.write("f", "one")
	g.commit("one")
	bare := g.bare()
	s := serve(t, bare)
	for name, damage := range map[string]func(dir, pack string) error{
		"pack cut short": func(_, pack string) error { return os.Truncate(pack, 40) },
		"pack empty":     func(_, pack string) error { return os.Truncate(pack, 0) },
		"pack gone":      func(_, pack string) error { return os.Remove(pack) },
		"index damaged":  func(_, pack string) error { return os.Truncate(strings.TrimSuffix(pack, ".pack")+".idx", 100) },
		"objects gone":   func(dir, _ string) error { return os.RemoveAll(filepath.Join(dir, "objects")) },
		"half a pack left": func(dir, _ string) error {
			return os.WriteFile(filepath.Join(dir, "objects/pack/tmp_pack_1"), []byte("PACK"), 0o600)
		},
		"refs damaged": func(dir, _ string) error {
			return os.WriteFile(filepath.Join(dir, "packed-refs"), []byte("\x00\x00"), 0o600)
		},
		"of another address": func(dir, _ string) error {
			return os.WriteFile(filepath.Join(dir, "address"), []byte("https://example.org/x\n"), 0o600)
		},
		"everything is intact": func(string, string) error { return nil },
	} {
		dir := filepath.Join(t.TempDir(), "mirror")
		r := over(t, s, bare, gitrepo.Options{Dir: dir})
		fetch(t, r)
		packs, err := filepath.Glob(filepath.Join(dir, "objects", "pack", "*.pack"))
		if err != nil || len(packs) != 1 {
			t.Fatalf("packs: %v, %v", packs, err)
		}
		if err := os.Chmod(packs[0], 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(strings.TrimSuffix(packs[0], ".pack")+".idx", 0o600); err != nil {
			t.Fatal(err)
		}
		if err := damage(dir, packs[0]); err != nil {
			t.Fatal(err)
		}
		again := over(t, s, bare, gitrepo.Options{Dir: dir})
		refs, err := again.Fetch(t.Context())
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		tr, err := again.Tree(t.Context(), refs.Tip())
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if b, err := fs.ReadFile(tr, "f"); err != nil || string(b) != "one" {
			t.Errorf("%s: f = %q, %v", name, b, err)
		}
		if left, _ := filepath.Glob(filepath.Join(dir, "objects", "pack", "tmp_*")); len(left) > 0 {
			t.Errorf("%s: %v is left", name, left)
		}
	}
}
