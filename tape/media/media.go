// Package media is the book of a tape pool's cartridges: which there are, what state each is in, which media set it belongs to, and which backup
// sets lie on which media set. It answers which cartridge is the next to be written to and which may be recycled.
//
// It owns one file, written anew as a whole at each Save: a crash leaves the old book or the new one. All of it can be had from the cartridges again, but for
// what no tape says: places people gave, and what was found wrong with a cartridge. It speaks to no device and imports the ground floor, fsys and the
// on-tape format's types only.
package media

import (
	"bytes"
	"encoding/json"
	"slices"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
)

// A State is what can be done with a cartridge.
type State string

// The states of a cartridge: blank → labelled → writable → full → expired → recycled → labelled, and those outside of this circle.
const (
	Blank    State = "blank"    // nothing is on it; it may be taken
	Labelled State = "labelled" // it has its label, and nothing was committed on it yet
	Writable State = "writable" // it holds committed data and takes more
	Full     State = "full"     // it takes no more, or its media set is closed
	Expired  State = "expired"  // no backup set needs it
	Recycled State = "recycled" // its content is given up: it may be taken, and is labelled anew then
	Suspect  State = "suspect"  // something is wrong with it: it is read, never written
	Retired  State = "retired"  // a person has taken it out of use: it is read, never written
	Foreign  State = "foreign"  // what is on it is not this pool's: it is neither read nor written
	Cleaning State = "cleaning" // it cleans drives
)

// A Cartridge is one tape. Its bar code is a hint; what it is, its label and its memory say.
type Cartridge struct {
	ID      holdfast.ID `json:"id,omitzero"` // of its label; zero: it has none of ours
	Barcode string      `json:"barcode"`
	Serial  string      `json:"serial,omitempty"` // of the medium's memory
	State   State       `json:"state"`
	Why     string      `json:"why,omitempty"` // it is suspect, retired or foreign
	WORM    bool        `json:"worm,omitempty"`
	Vaulted string      `json:"vaulted,omitempty"` // where it was brought to; empty: it is in the library, or should be
	Set     holdfast.ID `json:"set,omitzero"`      // media set
	Seq     int         `json:"seq,omitempty"`     // number in it, from 1
	Created time.Time   `json:"created,omitzero"`  // when it was labelled
	Size    int64       `json:"size,omitempty"`    // bytes it takes, as its memory says
	Used    int64       `json:"used"`              // bytes of committed objects
}

// Name is what a person finds the cartridge by.
func (c *Cartridge) Name() string {
	switch {
	case c.Barcode != "":
		return c.Barcode
	case !c.Set.IsZero():
		return "tape " + c.ID.String()
	}
	return "cartridge " + c.Serial
}

// Takeable reports whether the cartridge may be labelled for a new media set.
func (c *Cartridge) Takeable() bool {
	return c.Vaulted == "" && (c.State == Blank || c.State == Recycled && !c.WORM)
}

// A Set is a media set: cartridges that stand alone. What is on them names nothing outside of them.
type Set struct {
	ID      holdfast.ID `json:"id"`
	Created time.Time   `json:"created"`
	Closed  time.Time   `json:"closed,omitzero"` // from when on nothing new begins in it; retention counts from here
	Given   bool        `json:"given,omitempty"` // up: its cartridges are recycled
}

// A Backup is a backup set that the pool holds.
type Backup struct {
	ID     holdfast.SetID `json:"id"`
	Media  holdfast.ID    `json:"media"`  // its media set
	Record holdfast.ID    `json:"record"` // the object on tape that says what it is
	Data   int64          `json:"data"`   // plaintext bytes of its chunks
	Chunks int64          `json:"chunks"`
	Stored int64          `json:"stored"`
}

// A Deletion says that a record on tape counts no more.
type Deletion struct {
	Record  holdfast.ID `json:"record"`
	Media   holdfast.ID `json:"media"`
	Written bool        `json:"written,omitempty"` // a tape says so, too
}

// A Book is the whole of it. Not safe for concurrent use.
type Book struct {
	Pool       holdfast.PoolID `json:"pool"`
	Cartridges []*Cartridge    `json:"cartridges"`
	Sets       []*Set          `json:"sets"`
	Backups    []*Backup       `json:"backups"`
	Deleted    []Deletion      `json:"deleted"`
}

// File is the book's name; maxBook bounds it: a million backup sets.
const (
	File    = "media.json"
	maxBook = 512 << 20
)

// page is the book as a file: the sum finds accidents.
type page struct {
	Version int             `json:"version"`
	Sum     holdfast.Digest `json:"sum"`
	Book    json.RawMessage `json:"book"`
}

func sum(b []byte) holdfast.Digest { return holdfast.Domain{}.Hasher().Sum(b) }

// Save writes the book. It is durable when Save returns.
func (b *Book) Save(f fsys.FS) error {
	const op = "write media book"
	body, err := json.Marshal(b)
	if err == nil {
		body, err = json.Marshal(page{1, sum(body), body})
	}
	if err != nil {
		return holdfast.Errorf(holdfast.Internal, op, "%w", err)
	}
	return fsys.Classify(op, fsys.Replace(f, File, body))
}

// Load reads the book of a pool. NotExist if there is none, Corrupt if it is not what it was.
func Load(f fsys.FS, id holdfast.PoolID) (*Book, error) {
	const op = "read media book"
	again := "read the catalog from the cartridges again"
	raw, err := fsys.ReadFile(f, File, maxBook)
	if err != nil {
		return nil, fsys.Classify(op, err)
	}
	var p page
	var b Book
	if err := json.Unmarshal(raw, &p); err != nil {
		return nil, holdfast.Errorf(holdfast.Corrupt, op, "%w", err).Advise("%s", again)
	}
	if p.Version != 1 {
		return nil, holdfast.Errorf(holdfast.Unsupported, op, "version %d", p.Version).Advise("use a newer version of Holdfast")
	}
	var tight bytes.Buffer
	if err := json.Compact(&tight, p.Book); err != nil || sum(tight.Bytes()) != p.Sum {
		return nil, holdfast.Errorf(holdfast.Corrupt, op, "checksum differs").Advise("%s", again)
	}
	if err := json.Unmarshal(p.Book, &b); err != nil {
		return nil, holdfast.Errorf(holdfast.Corrupt, op, "%w", err).Advise("%s", again)
	}
	if b.Pool != id {
		return nil, holdfast.Errorf(holdfast.Invalid, op, "it is pool %s's, not %s's", b.Pool, id)
	}
	return &b, nil
}

// Set returns a media set, or nil.
func (b *Book) Set(id holdfast.ID) *Set {
	for _, s := range b.Sets {
		if s.ID == id {
			return s
		}
	}
	return nil
}

// Backup returns a backup set, or nil.
func (b *Book) Backup(id holdfast.SetID) *Backup {
	for _, s := range b.Backups {
		if s.ID == id {
			return s
		}
	}
	return nil
}

// Tape returns the cartridge with a label's id, or nil.
func (b *Book) Tape(id holdfast.ID) *Cartridge {
	for _, c := range b.Cartridges {
		if c.ID == id && !id.IsZero() {
			return c
		}
	}
	return nil
}

// Barcode returns the cartridges with a bar code: there may be none, or more than one.
func (b *Book) Barcode(code string) []*Cartridge {
	var out []*Cartridge
	for _, c := range b.Cartridges {
		if c.Barcode == code {
			out = append(out, c)
		}
	}
	return out
}

// Of returns the cartridges of a media set in their order.
func (b *Book) Of(set holdfast.ID) []*Cartridge {
	var out []*Cartridge
	for _, c := range b.Cartridges {
		if c.Set == set && !set.IsZero() {
			out = append(out, c)
		}
	}
	slices.SortFunc(out, func(x, y *Cartridge) int { return x.Seq - y.Seq })
	return out
}

// Next returns the cartridge that writing to a media set goes on with; nil: a new one is needed.
func (b *Book) Next(set holdfast.ID) *Cartridge {
	all := b.Of(set)
	if len(all) == 0 {
		return nil
	}
	c := all[len(all)-1]
	if (c.State != Labelled && c.State != Writable) || c.Vaulted != "" {
		return nil
	}
	return c
}

// Live returns the backup sets on a media set.
func (b *Book) Live(set holdfast.ID) []*Backup {
	var out []*Backup
	for _, s := range b.Backups {
		if s.Media == set {
			out = append(out, s)
		}
	}
	return out
}

// Close ends a media set: nothing new begins in it.
func (b *Book) Close(set *Set, now time.Time) {
	if !set.Closed.IsZero() {
		return
	}
	set.Closed = now
	for _, c := range b.Of(set.ID) {
		if c.State == Labelled || c.State == Writable {
			c.State = Full
		}
	}
}

// Delete strikes a backup set out. It reports whether there was one.
func (b *Book) Delete(id holdfast.SetID) bool {
	i := slices.IndexFunc(b.Backups, func(s *Backup) bool { return s.ID == id })
	if i < 0 {
		return false
	}
	b.Deleted = append(b.Deleted, Deletion{Record: b.Backups[i].Record, Media: b.Backups[i].Media})
	b.Backups = slices.Delete(b.Backups, i, i+1)
	return true
}

// Expire marks the cartridges of media sets that no backup set needs, that are closed, and whose time since then is up.
func (b *Book) Expire(now time.Time, keep time.Duration) {
	for _, s := range b.Sets {
		if s.Given || s.Closed.IsZero() || now.Before(s.Closed.Add(keep)) || len(b.Live(s.ID)) > 0 {
			continue
		}
		for _, c := range b.Of(s.ID) {
			if c.State == Full {
				c.State = Expired
			}
		}
	}
}

// Recycle gives up a media set as a whole: every backup set on it is struck out, and its cartridges may be taken. Who calls it has made sure that nobody
// reads or writes it. Write-once cartridges are retired.
func (b *Book) Recycle(set *Set, now time.Time) {
	for _, s := range b.Live(set.ID) {
		b.Delete(s.ID)
	}
	b.Close(set, now)
	set.Given = true
	for _, c := range b.Of(set.ID) {
		switch {
		case c.State == Suspect || c.State == Retired:
		case c.WORM:
			c.State, c.Why = Retired, "write-once, and its content was given up"
		default:
			c.State = Recycled
		}
	}
}

// Forget drops what is of no more use: given-up media sets without a cartridge that still has their label, and deletions of records on them.
func (b *Book) Forget() {
	b.Sets = slices.DeleteFunc(b.Sets, func(s *Set) bool { return s.Given && len(b.Of(s.ID)) == 0 })
	b.Deleted = slices.DeleteFunc(b.Deleted, func(d Deletion) bool { return b.Set(d.Media) == nil })
}
