package api

import (
	"context"
	"time"

	"github.com/holdfast-backup/holdfast/tape/care"
)

// Tapes is the part of the service that looks after tape libraries: devices and cartridges, not pools on them. It is apart from Service, which
// another assembly may implement without it; the routes are there if the service has it.
type Tapes interface {
	TapeLibraries(ctx context.Context) ([]TapeLibrary, error)
	// AddTapeLibrary opens the library to see that it is there, and keeps its address.
	AddTapeLibrary(ctx context.Context, s TapeLibrarySpec) (TapeLibraryShown, error)
	TapeLibrary(ctx context.Context, name string) (TapeLibraryShown, error)
	// RemoveTapeLibrary forgets an address. Nothing in the library changes.
	RemoveTapeLibrary(ctx context.Context, name string) (TapeLibrary, error)
	// ScanTape lists the devices behind an address.
	ScanTape(ctx context.Context, address string) ([]TapeDevice, error)
	// WorkTape starts a run whose result is what the work has found: care.Stock, Tested, Cleaned, Medium, Moved or ltfs.Copied.
	WorkTape(ctx context.Context, name, do string, w TapeWork) (Run, error)
}

type (
	// TapeLibrarySpec names a library and says where it is.
	TapeLibrarySpec struct {
		Name    string            `json:"name" minLength:"1" maxLength:"64" pattern:"^[A-Za-z0-9][A-Za-z0-9._-]*$"`
		Address string            `json:"address" doc:"iscsi://HOST[:PORT]/TARGET[?user=NAME&secret-file=FILE], sg:/dev/sgN, or sg:serial:NUMBER; secrets are in files on the appliance, never in the address"`
		Drives  map[string]string `json:"drives,omitempty" doc:"serial numbers of drives by element address, where the library does not tell them"`
		Prefix  string            `json:"cleaning_prefix,omitempty" maxLength:"16" doc:"bar codes of cleaning cartridges begin so; empty: CLN"`
	}

	// TapeLibrary is a library that the appliance knows.
	TapeLibrary struct {
		TapeLibrarySpec
		Serial string    `json:"serial,omitempty" doc:"the library's serial number when it was added; another one is refused"`
		Added  time.Time `json:"added"`
	}

	// TapeLibraryShown is a library with what is in it.
	TapeLibraryShown struct {
		TapeLibrary
		Stock care.Stock `json:"stock"`
	}

	// TapeDevice is a device behind an address.
	TapeDevice struct {
		Kind     string `json:"kind" doc:"changer, drive, or other"`
		Place    string `json:"place" doc:"logical unit or device file"`
		Vendor   string `json:"vendor"`
		Product  string `json:"product"`
		Revision string `json:"revision"`
		Serial   string `json:"serial,omitempty"`
	}

	// TapeWork says what to work on. Each work takes what it needs of it.
	TapeWork struct {
		Cartridge string       `json:"cartridge,omitempty" doc:"bar code, or element address where it is"`
		Drive     string       `json:"drive,omitempty" doc:"serial number or element address; empty: a free one"`
		Format    string       `json:"format,omitempty" enum:"hft,ltfs" doc:"of a label"`
		Volume    string       `json:"volume,omitempty" maxLength:"64" doc:"name of a new LTFS volume"`
		Dir       string       `json:"dir,omitempty" doc:"folder on the appliance, absolute"`
		Expect    *care.Expect `json:"expect,omitempty" doc:"the content that may be lost, as media-show told it"`
	}

	tapeWorkIn struct {
		Name string `path:"name"`
		Do   string `path:"do" enum:"scan,drive-test,drive-clean,media-show,media-label,media-erase,media-import,media-export,export-dir,import-dir"`
		Body TapeWork
	}

	tapeScanIn struct {
		Address string `query:"address" required:"true" doc:"as of a library; sg:all: every device of the appliance"`
	}
)

func (a *API) registerTape() {
	s, ok := a.o.Service.(Tapes)
	if !ok {
		return
	}
	route(a, "GET", "/v1/tape/libraries", "List tape libraries", 200, func(ctx context.Context, _ *none) ([]TapeLibrary, error) {
		return list(s.TapeLibraries(ctx))
	})
	route(a, "POST", "/v1/tape/libraries", "Add a tape library", 201, func(ctx context.Context, in *bodyOfType[TapeLibrarySpec]) (TapeLibraryShown, error) {
		return s.AddTapeLibrary(ctx, in.Body)
	})
	route(a, "GET", "/v1/tape/libraries/{name}", "Show a tape library and what is in it", 200, func(ctx context.Context, in *byName) (TapeLibraryShown, error) {
		return s.TapeLibrary(ctx, in.Name)
	})
	route(a, "DELETE", "/v1/tape/libraries/{name}", "Forget a tape library; nothing in it changes", 200, func(ctx context.Context, in *byName) (TapeLibrary, error) {
		return s.RemoveTapeLibrary(ctx, in.Name)
	})
	route(a, "GET", "/v1/tape/devices", "List the devices behind an address", 200, func(ctx context.Context, in *tapeScanIn) ([]TapeDevice, error) {
		return list(s.ScanTape(ctx, in.Address))
	})
	route(a, "POST", "/v1/tape/libraries/{name}/{do}", "Work with drives and cartridges", 202, func(ctx context.Context, in *tapeWorkIn) (Run, error) {
		return s.WorkTape(ctx, in.Name, in.Do, in.Body)
	})
}
