package seal

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
)

var (
	update = flag.Bool("update", false, "write the golden files anew")

	testPool = holdfast.PoolID{ID: holdfast.ID{1, 2, 3, 4, 5, 6, 0x47, 8, 0x89, 10, 11, 12, 13, 14, 15, 16}}
	testTime = time.Unix(1_700_000_000, 0)
	cheap    = Cost{Passes: 1, KiB: 64, Lanes: 1}
)

// counting is an entropy for vectors: bytes that count up.
func counting() entropy {
	next := byte(0)
	return func(b []byte) {
		for i := range b {
			b[i] = next
			next++
		}
	}
}

func testKey(first byte) (k Key) {
	for i := range k {
		k[i] = first + byte(i)
	}
	return k
}

func testRing(t testing.TB) *Ring {
	t.Helper()
	r, err := New(Options{Pool: testPool, Kind: KeyFile, Secret: testKey(0xa0).Secret(), Domain: holdfast.Domain{Key: testKey(0x40)}, Seed: 42, Now: testTime, rand: counting()})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func passphrase(t testing.TB, s string) Secret {
	t.Helper()
	p, err := ReadPassphrase([]byte(s))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	name = filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(name, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("%s: this version writes other bytes than version 1", name)
	}
}

// Goal: the cryptography does not change unnoticed, and the design document tells the truth. Method: vectors with fixed inputs; each value
// must be printed in the document.
func TestVectorsAreThoseOfTheDesign(t *testing.T) {
	doc, err := os.ReadFile("../../docs/design/0004-encryption.md")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Join(strings.Fields(string(doc)), "")
	e := &epoch{id: KeyID{0xee}, key: testKey(0)}
	salt := [32]byte(testKey(0x80))
	c := newCipher(e, salt, testPool, 0x0000000100000002)
	containerKey := derive(e.key[:], salt[:], useContainer, testPool.ID[:], binary.LittleEndian.AppendUint64(nil, 0x0000000100000002))
	w := &wrap{kind: KeyFile, salt: salt}
	kek := testKey(0xa0).Secret().kek(w, testPool)
	wp := &wrap{kind: Passphrase, salt: salt, cost: cheap}
	pkek := passphrase(t, "correct horse battery staple\n").kek(wp, testPool)
	for _, v := range []struct {
		name string
		b    []byte
	}{
		{"container key", containerKey[:]},
		{"record 7", c.Seal(nil, []byte("holdfast"), []byte("head"), 7)},
		{"key-encryption key of a key file", kek[:]},
		{"key-encryption key of a passphrase", pkek[:]},
	} {
		if !strings.Contains(text, hex.EncodeToString(v.b)) {
			t.Errorf("%s is %x, which the document does not say", v.name, v.b)
		}
	}
	for l := range strings.Lines(string(testKey(0xa0).Armour())) {
		if !strings.Contains(text, strings.Join(strings.Fields(l), "")) {
			t.Errorf("the document lacks the line %q", l)
		}
	}
}

// Goal: keyrings and sealed objects of version 1 open for ever. Method: golden files, written byte for byte and opened.
func TestGoldenRingAndObject(t *testing.T) {
	b, r := testRing(t).Encode(0)
	golden(t, "v1.ring", b)
	o, err := r.SealObject("sets/x.set", []byte("a set"))
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "v1.object", o)
	golden(t, "v1.key", testKey(0xa0).KeyFile())
	l, err := Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	again, err := l.Unlock(testKey(0xa0).Secret())
	if err != nil {
		t.Fatal(err)
	}
	if p, err := again.OpenObject("sets/x.set", o); err != nil || string(p) != "a set" {
		t.Fatalf("%q: %v", p, err)
	}
	if again.Domain() != r.Domain() || again.Seed() != 42 || again.Generation() != 1 {
		t.Fatal("the keyring opens to something else")
	}
}

// Goal: each of several secrets opens a keyring, through any number of rotations; a replaced one does not.
func TestEverySecretOpensUntilItIsReplaced(t *testing.T) {
	r := testRing(t)
	r, err := r.Add(Passphrase, passphrase(t, "correct horse battery staple"), cheap, testTime)
	if err != nil {
		t.Fatal(err)
	}
	recovery, ok := r.Recovery()
	if !ok {
		t.Fatal("no recovery key")
	}
	opens := func(r *Ring, s Secret, want bool) {
		t.Helper()
		b, _ := r.Encode(0)
		l, err := Parse(b)
		if err != nil {
			t.Fatal(err)
		}
		got, err := l.Unlock(s)
		if want && (err != nil || got.Domain() != r.Domain() || len(got.epochs) != len(r.epochs)) {
			t.Fatalf("does not open: %v", err)
		}
		if !want && (!errors.Is(err, holdfast.Permission) || holdfast.HintOf(err) == "") {
			t.Fatalf("opens, or refuses in other words: %v", err)
		}
	}
	old, pass := testKey(0xa0).Secret(), passphrase(t, "correct horse battery staple\r\nsecond line")
	for range 3 {
		opens(r, old, true)
		opens(r, pass, true)
		opens(r, recovery.Secret(), true)
		opens(r, testKey(1).Secret(), false)
		opens(r, passphrase(t, "correct horse battery stable"), false)
		opens(r, Secret{}, false)
		if r, err = r.Rotate(Rotation{Now: testTime, Since: 7}); err != nil {
			t.Fatal(err)
		}
	}
	if r, err = r.Rotate(Rotation{Now: testTime, Kind: KeyFile, Secret: testKey(9).Secret(), Redo: true, Since: 77}); err != nil {
		t.Fatal(err)
	}
	opens(r, old, false)
	opens(r, pass, false)
	opens(r, testKey(9).Secret(), true)
	opens(r, recovery.Secret(), true)
	if r.Redo() != 77 || len(r.Info().Epochs) != 5 {
		t.Fatalf("%+v", r.Info())
	}
	if r, err = r.Rotate(Rotation{Now: testTime, Recovery: true}); err != nil {
		t.Fatal(err)
	}
	opens(r, recovery.Secret(), false)
	fresh, _ := r.Recovery()
	opens(r, fresh.Secret(), true)
}

// Goal: a rotation never gives the old data key to what is new, nor loses it for what is old.
func TestRotationKeepsOldDataReadable(t *testing.T) {
	r := testRing(t)
	c := r.NewCipher(5)
	sealed := c.Seal(nil, []byte("old"), nil, 0)
	box, err := r.SealObject("a", []byte("old"))
	if err != nil {
		t.Fatal(err)
	}
	n, err := r.Rotate(Rotation{Now: testTime, Since: 6})
	if err != nil {
		t.Fatal(err)
	}
	if d := n.NewCipher(6); d.KeyID == c.KeyID {
		t.Fatal("the new container has the old key")
	}
	back, err := n.Cipher(c.KeyID, c.Salt, 5)
	if err != nil {
		t.Fatal(err)
	}
	if p, err := back.Open(nil, sealed, nil, 0); err != nil || string(p) != "old" {
		t.Fatalf("%q: %v", p, err)
	}
	if p, err := n.OpenObject("a", box); err != nil || string(p) != "old" {
		t.Fatalf("%q: %v", p, err)
	}
	newBox, err := n.SealObject("a", []byte("new"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.OpenObject("a", newBox); !errors.Is(err, holdfast.Corrupt) {
		t.Fatalf("the old keyring opens what is new: %v", err)
	}
}

// Goal: a record opens only where it was sealed: same container, number, head. Method: change one thing at a time.
func TestCipherBindsRecordToItsPlace(t *testing.T) {
	r := testRing(t)
	c := r.NewCipher(5)
	sealed := c.Seal(nil, []byte("payload"), []byte("head"), 3)
	if len(sealed) != len("payload")+Overhead {
		t.Fatal("wrong overhead")
	}
	other, err := r.Cipher(c.KeyID, c.Salt, 6)
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(sealed)
	flipped[2] ^= 1
	for name, try := range map[string]func() ([]byte, error){
		"other container": func() ([]byte, error) { return other.Open(nil, sealed, []byte("head"), 3) },
		"other number":    func() ([]byte, error) { return c.Open(nil, sealed, []byte("head"), 4) },
		"other head":      func() ([]byte, error) { return c.Open(nil, sealed, []byte("Head"), 3) },
		"flipped":         func() ([]byte, error) { return c.Open(nil, flipped, []byte("head"), 3) },
		"short":           func() ([]byte, error) { return c.Open(nil, sealed[:5], []byte("head"), 3) },
	} {
		if p, err := try(); !errors.Is(err, holdfast.Corrupt) {
			t.Errorf("%s: %q, %v", name, p, err)
		}
	}
	if _, err := r.Cipher(KeyID{9}, c.Salt, 5); !errors.Is(err, holdfast.Corrupt) {
		t.Errorf("unknown key: %v", err)
	}
	in := bytes.Clone(sealed)
	if p, err := c.Open(in[:0], in, []byte("head"), 3); err != nil || string(p) != "payload" {
		t.Errorf("in place: %q, %v", p, err)
	}
}

// Goal: an object opens under its own name only, and every flipped bit of an object or keyring is found without the key.
func TestFlipsAreFoundWithoutTheKey(t *testing.T) {
	b, r := testRing(t).Encode(0)
	o, err := r.SealObject("a", []byte("content"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.OpenObject("b", o); !errors.Is(err, holdfast.Corrupt) {
		t.Fatalf("opens under another name: %v", err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range o {
		bad := bytes.Clone(o)
		bad[i] ^= 1 << rng.IntN(8)
		if CheckObject(bad) == nil {
			t.Fatalf("byte %d of the object", i)
		}
	}
	for i := range b {
		bad := bytes.Clone(b)
		bad[i] ^= 1 << rng.IntN(8)
		if _, err := Parse(bad); err == nil {
			t.Fatalf("byte %d of the keyring", i)
		}
	}
}

// Goal: no plaintext and no secret shows in a keyring or object, nor when a secret is printed by accident.
func TestNothingSecretShows(t *testing.T) {
	key := NewKey()
	r, err := New(Options{Pool: testPool, Kind: KeyFile, Secret: key.Secret(), Domain: holdfast.Domain{Key: NewKey()}, Seed: 42, Now: testTime})
	if err != nil {
		t.Fatal(err)
	}
	b, r := r.Encode(0)
	o, err := r.SealObject("a", bytes.Repeat([]byte("finance-db-01"), 300))
	if err != nil {
		t.Fatal(err)
	}
	rec, _ := r.Recovery()
	for name, s := range map[string][]byte{"domain": r.domain[:], "data key": r.epochs[0].key[:], "recovery": rec[:], "key": key[:], "kek": r.keks[0][:]} {
		if bytes.Contains(b, s[:12]) || bytes.Contains(o, s[:12]) {
			t.Errorf("%s shows", name)
		}
	}
	if bytes.Contains(o, []byte("finance")) {
		t.Error("content shows")
	}
	for _, s := range []string{fmt.Sprint(rec.Secret(), rec), fmt.Sprintf("%v %+v %#v %s", rec, rec, rec, rec), fmt.Sprintf("%#v", rec.Secret())} {
		if strings.Contains(s, "32") || !strings.Contains(s, "(") {
			t.Errorf("printed: %s", s)
		}
	}
}

// Goal: a mistyped key is refused, and the wrong line is named; what a person writes differently is forgiven.
func TestKeyFileIsReadAsTyped(t *testing.T) {
	k := NewKey()
	text := string(k.KeyFile())
	for name, s := range map[string]string{
		"as written": text, "lower case": strings.ToLower(text), "no dashes": strings.ReplaceAll(text, "-", ""), "windows": strings.ReplaceAll(text, "\n", "\r\n"),
		"no comment": string(k.Armour()), "taken for others": strings.NewReplacer("0", "O", "1", "I").Replace(strings.SplitN(text, "\n", 2)[0]) + "\n" + typed(k),
	} {
		if got, err := ParseKey([]byte(s)); err != nil || got != k {
			t.Errorf("%s: %v", name, err)
		}
	}
	lines := strings.SplitAfter(string(k.Armour()), "\n")
	other := strings.SplitAfter(string(NewKey().Armour()), "\n")
	for i := range 4 {
		bad := strings.Join(lines[:i], "") + strings.Replace(lines[i], lines[i][5:6], swap(lines[i][5]), 1) + strings.Join(lines[i+1:], "")
		if _, err := ParseKey([]byte(bad)); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("line %d", i+1)) {
			t.Errorf("line %d: %v", i+1, err)
		}
		mixed := strings.Join(lines[:i], "") + other[i] + strings.Join(lines[i+1:], "")
		if _, err := ParseKey([]byte(mixed)); err == nil {
			t.Error("lines of two keys")
		}
	}
	for n := range len(text) - 1 {
		if _, err := ParseKey([]byte(text[:n])); !errors.Is(err, holdfast.Invalid) || holdfast.HintOf(err) == "" {
			t.Fatalf("cut off after %d bytes: %v", n, err)
		}
	}
}

// typed writes a key with the letters that are taken for others.
func typed(k Key) string {
	var b strings.Builder
	for l := range strings.Lines(string(k.Armour())) {
		name, rest, _ := strings.Cut(l, " ")
		b.WriteString(name + " " + strings.NewReplacer("0", "o", "1", "l").Replace(rest))
	}
	return b.String()
}

func swap(c byte) string {
	if c == '7' {
		return "8"
	}
	return "7"
}

// Goal: a passphrase that protects nothing is refused.
func TestShortPassphraseIsRefused(t *testing.T) {
	for _, s := range []string{"", "\n", "short", "eleven char\n", "short\nbut the file goes on", strings.Repeat("x", 2000), strings.Repeat("x", 1<<20)} {
		if _, err := ReadPassphrase([]byte(s)); !errors.Is(err, holdfast.Invalid) {
			t.Errorf("%.20q: %v", s, err)
		}
	}
}

// Goal: the sheet holds all that is needed, and its key opens the pool.
func TestSheetOpensThePool(t *testing.T) {
	b, r := testRing(t).Encode(0)
	sheet, err := r.Sheet("it's a pool", testTime)
	if err != nil {
		t.Fatal(err)
	}
	text := string(sheet)
	var key []string
	for l := range strings.Lines(text) {
		l = strings.TrimSpace(l)
		if f := strings.Fields(l); len(f) == 2 && strings.Count(f[1], "-") >= 1 && len(f[0]) == 1 || strings.HasPrefix(l, "key ") {
			key = append(key, l)
		}
	}
	k, err := ParseKey([]byte(strings.Join(key, "\n")))
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	l, err := Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Unlock(k.Secret()); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{testPool.String(), `'it'\''s a pool'`, k.Fingerprint().String(), "2023-11-14"} {
		if !strings.Contains(text, want) {
			t.Errorf("the sheet lacks %q", want)
		}
	}
}

// FuzzKey: whatever is typed, a key that is accepted prints as one that is accepted.
func FuzzKey(f *testing.F) {
	f.Add(testKey(3).KeyFile())
	f.Add([]byte("1 0000-0000-0000-0000\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := ParseKey(b)
		if err != nil {
			return
		}
		if again, err := ParseKey(k.Armour()); err != nil || again != k {
			t.Fatal("the key does not survive printing")
		}
	})
}

// FuzzRing: a keyring with any inside and outside opens or is refused; what opens encodes to the same bag.
func FuzzRing(f *testing.F) {
	b, r := testRing(f).Encode(0)
	f.Add(b, r.bag())
	f.Fuzz(func(t *testing.T, b, bag []byte) {
		if len(b) > ringSum { // a checksum that fits, to come to the rest
			sum := holdfast.Domain{}.Hasher().Sum(b[:len(b)-ringSum])
			b = append(bytes.Clone(b[:len(b)-ringSum]), sum[:]...)
		}
		if l, err := Parse(b); err == nil {
			_ = l.Wraps()
			if _, err := l.Unlock(testKey(0xa0).Secret()); err != nil && holdfast.KindOf(err) != holdfast.Permission && holdfast.KindOf(err) != holdfast.Corrupt {
				t.Fatal(err)
			}
		}
		x := &Ring{wraps: make([]wrap, 2)}
		if x.parseBag(bag) == nil && !bytes.Equal(x.bag(), bag) {
			t.Fatal("a bag does not encode to what it was decoded from")
		}
	})
}

// FuzzObject: any bytes are refused or open to what encodes to the same content.
func FuzzObject(f *testing.F) {
	r := testRing(f)
	o, err := r.SealObject("a", []byte("content"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(o)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > objectSum {
			sum := holdfast.Domain{}.Hasher().Sum(b[:len(b)-objectSum])
			b = append(bytes.Clone(b[:len(b)-objectSum]), sum[:]...)
		}
		if p, err := r.OpenObject("a", b); err == nil && !bytes.Equal(p, []byte("content")) {
			t.Fatal("an object was forged")
		} else if err != nil && holdfast.KindOf(err) != holdfast.Corrupt && holdfast.KindOf(err) != holdfast.Unsupported {
			t.Fatal(err)
		}
	})
}

func BenchmarkCipher(b *testing.B) {
	c := testRing(b).NewCipher(1)
	p := make([]byte, 1<<20)
	out := make([]byte, 0, len(p)+Overhead)
	b.SetBytes(int64(len(p)))
	for i := range b.N {
		out = c.Seal(out[:0], p, nil, uint32(i))
	}
}
