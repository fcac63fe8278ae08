package site

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/holdfast-backup/holdfast"
)

// Version is the form of the file that this package reads and writes.
const Version = 1

// MaxBytes bounds a file.
const MaxBytes = 1 << 20

const maxItems = 10000 // of a section

// An Item is one thing of a section, as JSON has it: maps, lists, texts, numbers, true and false.
type Item map[string]any

// A Document is a site: items by section and name.
type Document map[string]map[string]Item

func invalid(format string, args ...any) *holdfast.Error {
	return holdfast.Errorf(holdfast.Invalid, "read site file", format, args...)
}

// Parse reads a file and brings its items into the form of the parts. A section or key that is not known is Invalid: a typing error must
// not mean a default.
func Parse(text []byte, parts []Part) (Document, error) {
	if len(text) > MaxBytes {
		return nil, invalid("%d bytes; at most %d are allowed", len(text), MaxBytes)
	}
	var raw map[string]any
	if err := yaml.Unmarshal(text, &raw); err != nil {
		return nil, invalid("%w", err).Advise("'holdfast config export' shows what a file looks like")
	}
	if v, ok := raw["version"].(int); !ok || v != Version {
		return nil, invalid("the file must begin with \"version: %d\"", Version).Advise("'holdfast config export' shows what a file looks like")
	}
	delete(raw, "version")
	out := Document{}
	for _, name := range slices.Sorted(maps.Keys(raw)) {
		p := find(parts, name)
		if p == nil {
			return nil, invalid("there is no section %q", name).Advise("the sections are: %s", strings.Join(names(parts), ", "))
		}
		items, err := section(name, raw[name])
		if err != nil {
			return nil, err
		}
		for _, n := range slices.Sorted(maps.Keys(items)) {
			if items[n], err = normal(p, n, items[n]); err != nil {
				return nil, err
			}
		}
		out[name] = items
	}
	return out, nil
}

// section reads the items of a section. An empty section says that there is nothing, as does an item without keys.
func section(name string, v any) (map[string]Item, error) {
	out := map[string]Item{}
	if v == nil {
		return out, nil
	}
	m, ok := v.(map[string]any)
	if !ok {
		return nil, invalid("section %s holds no names with settings below them", name)
	}
	if len(m) > maxItems {
		return nil, invalid("section %s has %d entries; at most %d are allowed", name, len(m), maxItems)
	}
	for n, v := range m {
		if strings.TrimSpace(n) == "" {
			return nil, invalid("section %s has an entry without a name", name)
		}
		if v == nil {
			out[n] = Item{}
			continue
		}
		if _, ok := v.(map[string]any); !ok {
			return nil, invalid("%s: %s holds no settings", name, n)
		}
		it, err := asItem(v)
		if err != nil {
			return nil, invalid("%s: %s: %w", name, n, err)
		}
		out[n] = it
	}
	return out, nil
}

// asItem brings a value into the form that JSON has.
func asItem(v any) (Item, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	var it Item
	return it, json.Unmarshal(b, &it)
}

// Decode reads an item into a struct by its JSON names; an unknown key is an error.
func Decode(it Item, into any) error {
	b, err := json.Marshal(it)
	if err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	return d.Decode(into)
}

// Encode is the opposite of Decode.
func Encode(v any) (Item, error) { return asItem(v) }

func normal(p Part, name string, it Item) (Item, error) {
	out, err := p.Normal(name, it)
	if err == nil {
		out, err = asItem(out)
	}
	if err != nil {
		e := invalid("%s: %s: %w", p.Section(), name, err)
		e.Hint = holdfast.HintOf(err)
		if e.Hint == "" {
			e.Hint = "'holdfast config export' shows what an entry looks like"
		}
		return nil, e
	}
	if out == nil {
		out = Item{}
	}
	return out, nil
}

// Format writes a document as a file, sections in the order of the parts and items by name.
func Format(d Document, parts []Part) ([]byte, error) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# A Holdfast site. 'holdfast config diff -f FILE' compares, 'holdfast config apply -f FILE' changes.\nversion: %d\n", Version)
	for _, p := range parts {
		items, ok := d[p.Section()]
		if !ok {
			continue
		}
		b.WriteString("\n")
		if text := p.Remark(); text != "" {
			b.WriteString("# " + text + "\n")
		}
		enc := yaml.NewEncoder(&b)
		enc.SetIndent(2)
		if err := enc.Encode(map[string]any{p.Section(): items}); err != nil {
			return nil, holdfast.Errorf(holdfast.Internal, "write site file", "%w", err)
		}
		if err := enc.Close(); err != nil {
			return nil, holdfast.Errorf(holdfast.Internal, "write site file", "%w", err)
		}
	}
	return b.Bytes(), nil
}

func find(parts []Part, section string) Part {
	for _, p := range parts {
		if p.Section() == section {
			return p
		}
	}
	return nil
}

func names(parts []Part) []string {
	var out []string
	for _, p := range parts {
		out = append(out, p.Section())
	}
	return out
}
