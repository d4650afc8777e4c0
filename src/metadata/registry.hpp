#pragma once

// Every resource that lives, and those that died last, floor 1: a report can name a dead resource, and the owner of a
// block it does not know itself.

#include "metadata/told_leaks.hpp"
#include "os/fork_locks.hpp"

#include <pmr_debug/report.hpp>
#include <pmr_debug/statistics.hpp>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace pmr_debug::metadata {

enum class resource_kind : std::uint8_t { page, general_purpose, tracking, canary, end_of_page, temp, other };

/// A live block, as its owner describes it.
struct owned_block {
    block_info block;
    trace_id allocated = trace_id::none;
    const void* base = nullptr;  ///< where its upstream's block begins; null: where the block does
    std::size_t total = 0;       ///< bytes of its upstream's block; 0: as many as the block's
};

/// Asks a resource by its core whether a live block of its own starts at \p p, and what it knows of it. May be called
/// from any thread, under the registry's lock: must neither call the registry nor report. May say no where looking
/// would not be safe.
using owns_function = bool (*)(void* core, const void* p, owned_block* out) noexcept;

/// Has a resource call \p visit with the address of each live block of its own, by its core. Called as owns_function
/// is; no lock of the resource may be held in \p visit.
using visit_function = void (*)(void* core, void (*visit)(const void* p, void* context) noexcept,
                                void* context) noexcept;

/// What lies at an address, as a resource describes it for a fault report.
struct address_finding {
    enum class what : std::uint8_t {
        unknown,
        live_block,    ///< in `block`
        freed_block,   ///< in `block`, which is freed; its memory may be trapped
        guard_after,   ///< behind `block`: in its guard page, or in the slack before that
        guard_before,  ///< before `block`, in the same way
        retired_unit,  ///< in retired memory, of which no block is known any more
        never_used,    ///< in memory that was never handed out
    };
    what is = what::unknown;
    block_info block;  ///< address null: none is known
    trace_id allocated = trace_id::none;
    trace_id freed = trace_id::none;
    /// Bytes from the block: at or behind its end counted from its end (0: the first byte behind), before it negative;
    /// within it, from its start.
    std::ptrdiff_t distance = 0;
    /// The memory went back to the upstream since: who has it now knows better, unless that is the upstream, and it has
    /// let go of the memory, too. From find_at(): nobody said that it has.
    bool gone_back = false;
};

/// Returns: what \p address is to \p block.
[[nodiscard]] address_finding find_in(std::uintptr_t address, const block_info& block, trace_id allocated,
                                      trace_id freed) noexcept;

/// Asks a resource by its core what lies at \p address. Returns: false, \p out unchanged, if it is none of its memory.
/// Called from signal handlers, at any moment, in any thread: takes no lock, allocates nothing, reads no memory of the
/// user's and none that may be unmapped meanwhile.
using describe_address_function = bool (*)(void* core, std::uintptr_t address, address_finding* out) noexcept;

/// Asks a living resource, by its address, for its counters. Called without the registry's lock.
using stats_function = statistics (*)(const void* address) noexcept;

/// Has a fork take all locks of a resource, by its core.
using fork_function = void (*)(void* core, os::fork_locks& locks) noexcept;

struct resource_record {
    std::uint64_t id = 0;
    const void* address = nullptr;  ///< the std::pmr::memory_resource subobject
    const void* upstream = nullptr;
    void* core = nullptr;  ///< state of the resource, whose type follows from `kind`; null once dead
    owns_function owns = nullptr;
    visit_function visit_live = nullptr;  ///< null: each of its blocks is part of a larger one of its upstream's
    std::atomic<describe_address_function> describe_address{nullptr};  ///< null: the resource has none; null once dead
    stats_function stats = nullptr;
    fork_function hold = nullptr;
    resource_kind kind = resource_kind::other;
    bool unchecked = false;     ///< for one thread at a time, on the caller's word
    bool over_another = false;  ///< its upstream is none of this library's
    std::atomic<bool> alive{false};
    trace_id born = trace_id::none;
    trace_id died = trace_id::none;
    std::uint32_t died_thread = 0;
    told_leaks told;        ///< which of its blocks others of the chain have listed
    const char* type = "";  ///< static string
    char name[64]{};        ///< copied, NUL-terminated; … at its end: cut, to fit or at a NUL

    // The registry's own links: all records in order of construction; the living in that order, or the dead in order of
    // death.
    resource_record* older = nullptr;
    resource_record* newer = nullptr;
    resource_record* before = nullptr;
    resource_record* after = nullptr;
};

/// Dead records kept. Beyond them, the record of the resource dead longest is used again, under a new id.
inline constexpr std::size_t dead_records_kept = 4096;

/// Effects: adds a record. One of a living resource at the same \p address ends, as of \p born: an object's storage may
///   be used again though its destructor never ran. Takes time in proportion to the living resources.
/// Returns: null if private memory is used up; the caller then goes unregistered.
resource_record* register_resource(resource_kind kind, const char* type, std::string_view name, const void* address,
                                   const void* upstream, void* core, trace_id born, owns_function owns = nullptr,
                                   stats_function stats = nullptr) noexcept;

/// Effects: sets the function that fault reports ask. Null \p r is allowed.
void set_describe_address(resource_record* r, describe_address_function f) noexcept;

/// Effects: sets the function that tells the live blocks of \p r, each of which is one of its upstream's. Null \p r is
///   allowed.
void set_visit_live(resource_record* r, visit_function f) noexcept;

/// Effects: notes that \p r is for one thread at a time. Null \p r is allowed.
void set_unchecked(resource_record* r, bool unchecked) noexcept;

/// True if the living resource at \p address is one of this library's, and for one thread at a time.
[[nodiscard]] bool is_unchecked(const void* address) noexcept;

/// Effects: sets the function that a fork asks for locks. Null \p r is allowed.
void set_fork(resource_record* r, fork_function f) noexcept;

/// Effects: marks \p r dead. Null is allowed. Once it returns, nobody looks at the core any more.
void unregister_resource(resource_record* r, trace_id died) noexcept;

/// Effects: notes that \p r has another upstream now. Null is allowed.
void change_upstream(resource_record* r, const void* upstream) noexcept;

/// True if \p address is met on the way from the resource at \p from down its upstreams, \p from included. Only living
/// resources of this library are known to have upstreams.
[[nodiscard]] bool leads_to(const void* from, const void* address) noexcept;

/// Returns: how many are on that way that keep freed memory within the budget of the process.
[[nodiscard]] unsigned quarantines_below(const void* from) noexcept;

/// One resource of a chain: a copy. `name` and `type` are those of resource_ref.
struct chain_link {
    resource_ref resource;  ///< id 0: none of this library's; only the address is known
    const void* upstream = nullptr;
    stats_function stats = nullptr;
};

/// Returns: what is known of the living resource at \p address. In a signal handler that interrupted the registry, only
/// its name.
[[nodiscard]] chain_link link_at(const void* address) noexcept;

/// Returns: the living resource at \p address (a std::pmr::memory_resource*), or null if it is none of this library's.
/// Takes time in proportion to the living resources.
[[nodiscard]] resource_record* find_resource(const void* address) noexcept;

/// Returns: the resource at \p address that died last, or null if its record is gone.
[[nodiscard]] resource_record* find_dead_resource(const void* address) noexcept;

/// Which of the resources below the asking one may be named as owner.
enum class below : std::uint8_t {
    ask,   ///< all of them; a page_resource only if it is the direct upstream: its blocks are others' raw material
    skip,  ///< none
    stop,  ///< none, nor any other that is older than the asking one: in memory that is still that one's only what
           ///< stands on it can own a block; those below are not always known as such
};

/// Effects: asks the living resources but \p self, the one constructed last first, for the block that starts at \p p.
///   With below::ask, if the one that has it got it through a tracking resource that is dead (remains.hpp), that one is
///   told: as long as it is the same block, by its serial number.
/// Returns: what is known of the owner (id 0: there is none), and its block in \p out.
[[nodiscard]] resource_ref find_owner(const void* p, const resource_record* self, below upstreams,
                                      owned_block* out) noexcept;

/// Effects: asks the living resources, the one constructed last first, what lies at \p address. A block that is freed,
///   or overrun, comes before one that lives: there is no reason why the latter should fault. What has gone back counts
///   if nobody else knows the address, or the upstream says that it is freed.
/// Returns: who knows (id 0: nobody), and what in \p out.
/// For signal handlers: takes no lock, so a resource that comes or goes meanwhile may be missed; survives records that
/// were overwritten.
[[nodiscard]] resource_ref find_at(std::uintptr_t address, address_finding* out) noexcept;

/// Every resource object has its virtual functions and its core in this many bytes.
inline constexpr std::size_t object_bytes = 2 * sizeof(void*);

/// Returns: the resource, living or the last dead one, whose own object has \p address among its first object_bytes;
/// id 0: none. For signal handlers, as find_at().
[[nodiscard]] resource_ref peek_object_at(std::uintptr_t address) noexcept;

/// Returns: the dead resource, the last one known, that had \p address in its memory (id 0: none), and in \p out the
/// block that lived there when it died, if it is known. Who has the memory now is not asked. For signal handlers, as
/// find_at().
[[nodiscard]] resource_ref peek_former_owner(std::uintptr_t address, owned_block* out) noexcept;

/// What is a resource's own around a byte that it looks at.
struct own_memory {
    std::uintptr_t from = 0;  ///< as the upstream gave it, as far as that is known
    std::size_t bytes = 0;
    std::uintptr_t block = 0;  ///< the block of it that was handed out there, or is
    std::size_t block_bytes = 0;
};

/// Effects: asks the living resources, the one constructed last first, for a live block that holds \p address; \p self
///   is not asked. Blocks that all of \p mine lies in, or that lie in its block, do not count: one resource may stand
///   on the other.
/// Returns: whose it is (id 0: nobody's), and the block in \p out. Takes no lock, as find_at().
[[nodiscard]] resource_ref find_covering(const void* address, const own_memory& mine, const resource_record* self,
                                         owned_block* out) noexcept;

/// Returns: the living resource at \p address; of another library's, nothing but the address (id 0). For signal
/// handlers, as find_at().
[[nodiscard]] resource_ref peek_resource(const void* address) noexcept;

/// Effects: calls \p visit for every record, dead ones included, in order of construction, until it returns false.
/// Preconditions: \p visit does not call the registry. No resource dies while it runs.
void for_each_resource(bool (*visit)(resource_record& r, void* context) noexcept, void* context) noexcept;

/// As for_each_resource, for the living only. None, in a signal handler that interrupted the registry.
void for_each_living_resource(bool (*visit)(resource_record& r, void* context) noexcept, void* context) noexcept;

/// A block as the upstream of the resource that was asked for it gave it.
struct block_below {
    const void* base;
    std::size_t bytes;
};

/// Effects: \p self has listed blocks as leaks, which as blocks of its direct upstream are \p blocks. Each resource of
///   the chain notes its own, down to the first that hands out parts of larger blocks. Where the chain leads through
///   one that is none of this library's, it goes on with whoever has that very block, if somebody has. Null is allowed.
///   Preconditions: none of the resources' locks is held.
void tell_below(const resource_record* self, std::span<const block_below> blocks) noexcept;

/// True if a living resource may have blocks that are, one by one, those of \p self. Null is allowed.
[[nodiscard]] bool may_be_stood_on(const resource_record* self) noexcept;

/// Effects: \p self has listed the blocks \p listed as leaks, which lie at \p from or behind, before \p to. Living
///   resources that have the same blocks, as tell_below() finds its way, note theirs. Null is allowed.
///   Preconditions: none of the resources' locks is held.
void tell_above(const resource_record* self, const told_leaks& listed, std::uintptr_t from, std::uintptr_t to) noexcept;

/// Effects: \p out, which is empty, learns which blocks of \p self others of the chain have listed. Null is allowed.
void copy_told(const resource_record* self, told_leaks& out) noexcept;

/// Returns: the resource with that \p id, living or dead; empty if its record is gone.
[[nodiscard]] resource_ref find_by_id(std::uint64_t id) noexcept;

/// The public view of a record; empty for null.
[[nodiscard]] resource_ref describe(const resource_record* r) noexcept;

}  // namespace pmr_debug::metadata
