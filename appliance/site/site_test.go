package site

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast"
)

// fake is a part over a map. What it does is noted.
type fake struct {
	name  string
	items map[string]Item
	log   *[]string
	fails string // the name of an item that cannot be made
}

func (f *fake) Section() string { return f.name }
func (f *fake) Remark() string  { return "remark" }
func (f *fake) Current(context.Context) (map[string]Item, error) {
	return maps.Clone(f.items), nil
}
func (f *fake) Normal(_ string, it Item) (Item, error) {
	for k, v := range it {
		if k == "bad" {
			return nil, errors.New("bad key")
		}
		if v == "" {
			delete(it, k)
		}
	}
	return it, nil
}
func (f *fake) Refuse(_ string, was, now Item) error {
	if was["fixed"] != now["fixed"] {
		return holdfast.Errorf(holdfast.Unsupported, "", "fixed is fixed").Advise("leave it")
	}
	return nil
}
func (f *fake) Loss(_ context.Context, _ string, _, now Item) (string, error) {
	if now == nil && f.name == "b" {
		return "all of it", nil
	}
	return "", nil
}
func (f *fake) did(verb, name string) error {
	if name == f.fails {
		return holdfast.Errorf(holdfast.NoSpace, "make", "no room")
	}
	*f.log = append(*f.log, verb+" "+f.name+"/"+name)
	return nil
}
func (f *fake) Create(_ context.Context, name string, it Item) (Made, error) {
	err := f.did("create", name)
	if err == nil {
		f.items[name] = it
	}
	return Made{Secret: "key of " + name}, err
}
func (f *fake) Change(_ context.Context, name string, _, now Item) error {
	f.items[name] = now
	return f.did("change", name)
}
func (f *fake) Delete(_ context.Context, name string) error {
	delete(f.items, name)
	return f.did("delete", name)
}

func world() (parts []Part, log *[]string) {
	log = &[]string{}
	return []Part{&fake{name: "a", items: map[string]Item{}, log: log}, &fake{name: "b", items: map[string]Item{}, log: log}}, log
}

func read(t *testing.T, text string, parts []Part) Document {
	t.Helper()
	d, err := Parse([]byte(text), parts)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func apply(t *testing.T, text string, parts []Part, consent bool) (Plan, Result, error) {
	t.Helper()
	plan, err := Diff(t.Context(), read(t, text, parts), parts)
	if err != nil {
		t.Fatal(err)
	}
	r, err := Apply(t.Context(), plan, consent, parts)
	return plan, r, err
}

// TestRandomSitesConverge applies random sites one after the other: each leads to what it says, the second time nothing is done, and the
// export of what came out is the same site.
func TestRandomSitesConverge(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	parts, log := world()
	for range 300 {
		want := Document{}
		for _, p := range parts {
			if rng.IntN(4) == 0 {
				continue // not in the file
			}
			want[p.Section()] = map[string]Item{}
			for i := range rng.IntN(5) {
				want[p.Section()][fmt.Sprint("n", i)] = Item{"x": float64(rng.IntN(3)), "list": []any{"p", float64(rng.IntN(2))}, "deep": map[string]any{"k": rng.IntN(2) == 0}}
			}
		}
		before, err := Current(t.Context(), parts)
		if err != nil {
			t.Fatal(err)
		}
		text, err := Format(want, parts)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := apply(t, string(text), parts, true); err != nil {
			t.Fatal(err)
		}
		have, err := Current(t.Context(), parts)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range parts {
			w, managed := want[p.Section()]
			if !managed {
				w = before[p.Section()]
			}
			if fmt.Sprint(have[p.Section()]) != fmt.Sprint(w) {
				t.Fatalf("%s\nled to %v, not %v", text, have, w)
			}
		}
		*log = nil
		if plan, r, err := apply(t, string(text), parts, false); err != nil || len(plan.Steps) != 0 || r.Done != 0 || len(*log) != 0 {
			t.Fatalf("the second time: %+v %+v %v %v", plan, r, *log, err)
		}
		if text, err = Format(have, parts); err != nil {
			t.Fatal(err)
		}
		if plan, _, err := apply(t, string(text), parts, false); err != nil || len(plan.Steps) != 0 {
			t.Fatalf("the export differs: %+v %v", plan, err)
		}
	}
}

func TestStepsAreOrderedAndGuarded(t *testing.T) {
	parts, log := world()
	_, r, err := apply(t, "version: 1\nb: {y: {k: 1}, x: }\na: {z: }", parts, false)
	if err != nil || len(r.Made) != 3 || r.Made[0].Secret != "key of z" {
		t.Fatalf("%+v %v", r, err)
	}
	if want := []string{"create a/z", "create b/x", "create b/y"}; !slices.Equal(*log, want) {
		t.Errorf("%v", *log)
	}
	*log = nil
	if _, _, err := apply(t, "version: 1\na:\nb: {y: {k: 2}}", parts, false); !errors.Is(err, holdfast.Invalid) || len(*log) != 0 {
		t.Errorf("a loss without consent: %v %v", err, *log)
	}
	if _, _, err := apply(t, "version: 1\na:\nb: {y: {k: 2}}", parts, true); err != nil {
		t.Error(err)
	}
	if want := []string{"change b/y", "delete b/x", "delete a/z"}; !slices.Equal(*log, want) {
		t.Errorf("%v", *log)
	}
	*log = nil
	if plan, _, err := apply(t, "version: 1\na: {new: }\nb: {y: {k: 2, fixed: 1}}", parts, true); !errors.Is(err, holdfast.Unsupported) || len(*log) != 0 || plan.Steps[1].Refused == "" {
		t.Errorf("a refused change: %v %v", err, *log)
	}
	parts[1].(*fake).fails = "m"
	_, r, err = apply(t, "version: 1\nb: {y: {k: 2}, l: , m: , n: }", parts, true)
	if !errors.Is(err, holdfast.NoSpace) || r.Done != 1 || len(r.Made) != 1 {
		t.Errorf("a failing step: %+v %v", r, err)
	}
	parts[1].(*fake).fails = ""
	if _, r, err = apply(t, "version: 1\nb: {y: {k: 2}, l: , m: , n: }", parts, true); err != nil || r.Done != 2 {
		t.Errorf("going on: %+v %v", r, err)
	}
}

func TestMaskedSecretsStandForWhatThereIs(t *testing.T) {
	parts, _ := world()
	parts[0].(*fake).items["t"] = Item{"password": "***", "user": "u"}
	for text, steps := range map[string]int{"{password: '***', user: u}": 0, "{password: other, user: u}": 0, "{password: '***', user: v}": 1, "{user: u}": 1} {
		plan, err := Diff(t.Context(), read(t, "version: 1\na: {t: "+text+"}", parts), parts)
		if err != nil || len(plan.Steps) != steps {
			t.Errorf("%s: %+v %v", text, plan, err)
		}
	}
}

func TestBadFilesAreRefusedWithAdvice(t *testing.T) {
	parts, _ := world()
	for text, word := range map[string]string{
		"": "version", "version: 2": "version", "version: 1\nc:": `no section "c"`, "version: 1\na: 7": "no names", "version: 1\na: {x: 7}": "holds no settings",
		"version: 1\na: {x: {bad: 1}}": "bad key", "version: 1\na: {x: {1: 2}}": "", "version: 1\na: [": "yaml", "version: 1\na: {x: , x: }": "already defined",
		"version: 1\na: {\" \": }": "without a name", strings.Repeat("#", MaxBytes+1): "at most",
		"version: 1\na: &x [*x]": "",
	} {
		_, err := Parse([]byte(text), parts)
		if !errors.Is(err, holdfast.Invalid) || !strings.Contains(err.Error(), word) {
			t.Errorf("%.60q: %v", text, err)
		}
	}
}
