package wire

import (
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast"
)

func testAccessKey() (AccessSecret, Fingerprint) {
	var s AccessSecret
	var f Fingerprint
	for i := range s {
		s[i] = byte(i * 7)
	}
	for i := range f {
		f[i] = byte(255 - i)
	}
	return s, f
}

func TestAccessKeySurvivesHowPeopleCopyIt(t *testing.T) {
	s, f := testAccessKey()
	key := FormatAccessKey(s, f)
	for name, form := range map[string]string{
		"as printed": key,
		"lower case": strings.ToLower(key),
		"wrapped":    key[:40] + "\r\n  " + key[40:] + "\n",
		"dashes":     key[:20] + "-" + key[20:],
	} {
		gs, gf, err := ParseAccessKey(form)
		if err != nil || gs != s || gf != f {
			t.Errorf("%s: got %x %x %v", name, gs, gf, err)
		}
	}
}

func TestAccessKeyWithAnyOneWrongCharacterIsRefused(t *testing.T) {
	key := FormatAccessKey(testAccessKey())
	for i := range key {
		c := byte('7')
		if key[i] == c {
			c = '8'
		}
		if key[i] == '-' {
			continue
		}
		bad := key[:i] + string(c) + key[i+1:]
		_, _, err := ParseAccessKey(bad)
		if holdfast.KindOf(err) != holdfast.Invalid {
			t.Fatalf("character %d changed: error %v", i, err)
		}
		if strings.Contains(err.Error(), bad) {
			t.Fatalf("the error repeats the key: %v", err)
		}
	}
	for _, bad := range []string{"", "HF1-", "HF2" + key[3:], key[:len(key)-1], key + "0", strings.Repeat("0", 1<<20)} {
		if _, _, err := ParseAccessKey(bad); holdfast.KindOf(err) != holdfast.Invalid {
			t.Errorf("%.20q…: error %v", bad, err)
		}
	}
}

// FuzzAccessKey checks that whatever parses is the one key that formats to the same characters.
func FuzzAccessKey(f *testing.F) {
	f.Add(FormatAccessKey(testAccessKey()))
	f.Fuzz(func(t *testing.T, s string) {
		secret, ca, err := ParseAccessKey(s)
		if err != nil {
			return
		}
		strip := strings.NewReplacer(" ", "", "-", "", "\t", "", "\r", "", "\n", "")
		if got, want := strip.Replace(FormatAccessKey(secret, ca)), strip.Replace(strings.ToUpper(s)); got != want {
			t.Fatalf("%q parses, but formats to %q", want, got)
		}
	})
}
