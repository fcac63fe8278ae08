package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"testing"

	"github.com/holdfast-backup/holdfast"
)

func TestErrorsKeepTheirCodeAndSayWhatToDo(t *testing.T) {
	for _, c := range []struct {
		err  error
		code int
		text string
	}{
		{nil, OK, ""},
		{errors.New("x"), Failed, "error: x\n"},
		{fmt.Errorf("find: %w", holdfast.Errorf(holdfast.NotExist, "", "no such pool").Advise("list them")), NotFound, "error: find: no such pool\n  list them\n"},
		{&ExitError{Partial, errors.New("2 of 3")}, Partial, "error: 2 of 3\n"},
		{errors.New(`unknown command "x"`), Usage, "error: unknown command \"x\"\n  'prog --help' lists the commands\n"},
	} {
		var b bytes.Buffer
		if code := Report(&b, "prog", false, c.err); code != c.code || b.String() != c.text {
			t.Errorf("%v: code %d, %q", c.err, code, b.String())
		}
		if c.err == nil {
			continue
		}
		b.Reset()
		var got struct {
			Error struct{ Code, Message, Hint string }
		}
		if code := Report(&b, "prog", true, c.err); code != c.code || json.Unmarshal(b.Bytes(), &got) != nil || got.Error.Message != c.err.Error() {
			t.Errorf("%v: code %d, %s", c.err, code, b.String())
		}
	}
}

func TestSizesReadBack(t *testing.T) {
	for text, want := range map[string]int64{"0": 0, "512": 512, "80M": 80 << 20, "2G": 2 << 30, "1KiB": 1 << 10, "3tb": 3 << 40} {
		if got, err := ParseSize(text); got != want || err != nil {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "M", "-1", "9999999T", "1.5G"} {
		if _, err := ParseSize(text); !errors.Is(err, holdfast.Invalid) {
			t.Errorf("%q: %v", text, err)
		}
	}
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.00 KiB", 12 << 30: "12.0 GiB", -2048: "-2.00 KiB"} {
		if got := Size(n); got != want {
			t.Errorf("%d: %q", n, got)
		}
	}
}
