package site

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/holdfast-backup/holdfast"
)

// A Part is one section of a site: what there is, and how it is changed.
type Part interface {
	// Section is the part's name in the file.
	Section() string
	// Remark stands above the section in an export; one line, or nothing.
	Remark() string
	// Current returns what the appliance has, in the form of Normal.
	Current(ctx context.Context) (map[string]Item, error)
	// Normal checks an item and brings it into the one form that equal items share. Its errors say what is wrong with the item.
	Normal(name string, it Item) (Item, error)
	// Refuse says why an item cannot be changed in this way by applying a file; nil if it can.
	Refuse(name string, was, now Item) error
	// Loss says what is lost when an item is removed (now is nil), changed, or made (was is nil); "" if nothing is.
	Loss(ctx context.Context, name string, was, now Item) (string, error)
	// Create, Change and Delete do it. What Create returns is shown once.
	Create(ctx context.Context, name string, it Item) (Made, error)
	Change(ctx context.Context, name string, was, now Item) error
	Delete(ctx context.Context, name string) error
}

// Made is what making an item brought to light, such as a host's access key.
type Made struct {
	Section string `json:"section"`
	Name    string `json:"name"`
	Secret  string `json:"secret,omitempty" doc:"shown once"`
	Text    string `json:"text,omitempty" doc:"what to do with it"`
}

// A Verb is what a Step does.
type Verb string

const (
	Create Verb = "create"
	Change Verb = "change"
	Delete Verb = "delete"
)

// A Step makes one item as the file has it.
type Step struct {
	Verb    Verb     `json:"verb" enum:"create,change,delete"`
	Section string   `json:"section"`
	Name    string   `json:"name"`
	Lines   []string `json:"lines" doc:"what is different"`
	Loss    string   `json:"loss,omitempty" doc:"what will be lost; such steps need consent"`
	Refused string   `json:"refused,omitempty" doc:"why this cannot be done by applying a file"`

	was, now Item
}

// A Plan is what has to be done, in this order. The empty plan says that file and appliance agree.
type Plan struct {
	Steps []Step `json:"steps"`
	// ID names the plan, so that what is done can be what was shown.
	ID string `json:"id"`
}

// Destructive tells whether something will be lost.
func (p Plan) Destructive() bool {
	return slices.ContainsFunc(p.Steps, func(s Step) bool { return s.Loss != "" })
}

// Current returns all sections as the appliance has them.
func Current(ctx context.Context, parts []Part) (Document, error) {
	out := Document{}
	for _, p := range parts {
		items, err := p.Current(ctx)
		if err != nil {
			return nil, err
		}
		if items == nil {
			items = map[string]Item{}
		}
		for n, it := range items {
			if items[n], err = asItem(it); err != nil {
				return nil, holdfast.Errorf(holdfast.Internal, "export site", "%s: %s: %w", p.Section(), n, err)
			}
		}
		out[p.Section()] = items
	}
	return out, nil
}

// Diff compares a document with the appliance. It makes in the order of the parts and removes in the opposite order, last.
func Diff(ctx context.Context, want Document, parts []Part) (Plan, error) {
	have, err := Current(ctx, parts)
	if err != nil {
		return Plan{}, err
	}
	var up, down []Step
	for _, p := range parts {
		items, managed := want[p.Section()]
		if !managed {
			continue
		}
		a, b, err := compare(ctx, p, have[p.Section()], items)
		if err != nil {
			return Plan{}, err
		}
		up, down = append(up, a...), append(b, down...)
	}
	plan := Plan{Steps: append(up, down...)}
	if plan.Steps == nil {
		plan.Steps = []Step{}
	}
	plan.ID = plan.digest()
	return plan, nil
}

func compare(ctx context.Context, p Part, have, want map[string]Item) (up, down []Step, err error) {
	for _, name := range slices.Sorted(maps.Keys(want)) {
		s := Step{Verb: Create, Section: p.Section(), Name: name, now: want[name]}
		if was, ok := have[name]; ok {
			if same(was, s.now) {
				continue
			}
			s.Verb, s.was = Change, was
			if err := p.Refuse(name, was, s.now); err != nil {
				s.Refused = err.Error()
				if hint := holdfast.HintOf(err); hint != "" {
					s.Refused += "; " + hint
				}
			}
		}
		if s.Refused == "" {
			if s.Loss, err = p.Loss(ctx, name, s.was, s.now); err != nil {
				return nil, nil, err
			}
		}
		s.Lines = differences(s.was, s.now)
		up = append(up, s)
	}
	for _, name := range slices.Sorted(maps.Keys(have)) {
		if _, ok := want[name]; ok {
			continue
		}
		s := Step{Verb: Delete, Section: p.Section(), Name: name, was: have[name], Lines: []string{}}
		if s.Loss, err = p.Loss(ctx, name, s.was, nil); err != nil {
			return nil, nil, err
		}
		down = append(down, s)
	}
	return up, down, nil
}

// digest is a hash over everything that the plan says and does.
func (p Plan) digest() string {
	h := sha256.New()
	enc := json.NewEncoder(h)
	for _, s := range p.Steps {
		_ = enc.Encode([]any{s, s.was, s.now}) // they came from JSON
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// kept is what a secret shows as: on either side it stands for what there is.
const kept = "***"

// Same tells whether two values say the same; *** on either side stands for what there is.
func Same(a, b map[string]any) bool { return len(a) == 0 && len(b) == 0 || same(a, b) }

// same compares values as JSON has them.
func same(a, b any) bool {
	x, okX := asMap(a)
	y, okY := asMap(b)
	if okX && okY {
		for k := range x {
			if _, ok := y[k]; !ok {
				return false
			}
		}
		for k := range y {
			if v, ok := x[k]; !ok || !same(v, y[k]) {
				return false
			}
		}
		return true
	}
	l, okL := a.([]any)
	m, okM := b.([]any)
	if okL && okM {
		return slices.EqualFunc(l, m, same)
	}
	return a == kept || b == kept || reflect.DeepEqual(a, b)
}

func asMap(v any) (map[string]any, bool) {
	switch m := v.(type) {
	case Item:
		return m, true
	case map[string]any:
		return m, true
	}
	return nil, false
}

// differences names the keys that differ, with both values.
func differences(was, now Item) []string {
	a, b := map[string]any{}, map[string]any{}
	flatten(a, "", map[string]any(was))
	flatten(b, "", map[string]any(now))
	keys := map[string]bool{}
	for k := range a {
		keys[k] = true
	}
	for k := range b {
		keys[k] = true
	}
	out := []string{}
	for _, k := range slices.SortedFunc(maps.Keys(keys), func(x, y string) int { return cmp.Compare(x, y) }) {
		x, okX := a[k]
		y, okY := b[k]
		switch {
		case okX && okY && same(x, y):
		case was == nil:
			out = append(out, k+": "+show(y))
		case !okX:
			out = append(out, fmt.Sprintf("%s: (nothing) → %s", k, show(y)))
		case !okY:
			out = append(out, fmt.Sprintf("%s: %s → (nothing)", k, show(x)))
		default:
			out = append(out, fmt.Sprintf("%s: %s → %s", k, show(x), show(y)))
		}
	}
	return out
}

func flatten(into map[string]any, prefix string, v any) {
	m, ok := asMap(v)
	if !ok || len(m) == 0 && prefix != "" {
		into[prefix] = v
		return
	}
	for k, x := range m {
		name := k
		if prefix != "" {
			name = prefix + "." + k
		}
		flatten(into, name, x)
	}
}

// show writes a value on one line.
func show(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return "?"
	}
	s := string(b)
	if len(s) > 200 {
		s = strings.ToValidUTF8(s[:200], "") + "…"
	}
	return s
}

// Result is what an Apply did.
type Result struct {
	Done int    `json:"done" doc:"steps of the plan that were done"`
	Made []Made `json:"made" doc:"shown once"`
}

// Apply does the steps of a plan. A step that loses something needs consent; a refused step refuses all of them. Errors are of the step
// that failed; what was done before stays, and Result says what it was.
func Apply(ctx context.Context, plan Plan, consent bool, parts []Part) (Result, error) {
	const op = "apply site file"
	r := Result{Made: []Made{}}
	for _, s := range plan.Steps {
		if s.Refused != "" {
			return r, holdfast.Errorf(holdfast.Unsupported, op, "%s %s: %s", s.Section, s.Name, s.Refused).Advise("nothing was changed")
		}
		if s.Loss != "" && !consent {
			return r, holdfast.Errorf(holdfast.Invalid, op, "%s %s: %s", s.Section, s.Name, s.Loss).Advise("nothing was changed; if that is what you want, say --yes")
		}
	}
	for _, s := range plan.Steps {
		p := find(parts, s.Section)
		var err error
		switch s.Verb {
		case Create:
			var m Made
			if m, err = p.Create(ctx, s.Name, s.now); err == nil && m != (Made{}) {
				m.Section, m.Name = s.Section, s.Name
				r.Made = append(r.Made, m)
			}
		case Change:
			err = p.Change(ctx, s.Name, s.was, s.now)
		case Delete:
			err = p.Delete(ctx, s.Name)
		}
		if err != nil {
			return r, &holdfast.Error{Op: fmt.Sprintf("%s %s %s", s.Verb, s.Section, s.Name), Kind: holdfast.KindOf(err), Hint: holdfast.HintOf(err), Err: err}
		}
		r.Done++
	}
	return r, nil
}
