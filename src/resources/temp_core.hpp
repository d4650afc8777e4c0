#pragma once

// State of a temp resource, floor 4. It sits in private pages, with its records.
//
// Records are an array in order of allocation. In a bump arena that is the order of addresses within a chunk, so an
// address is found by bisection, rewinding is cutting the array, and recording is one append; a hash table would need
// a probe a block for all of it. What is cut off moves to a ring of the past.
//
//   records:  | chunk 0: live, freed, live … | chunk 1: live … |      -> rewind ->      past: | gone | gone | …
//
// The lock covers everything but the options; no upstream and no handler is called under it. Members named `…_held`
// expect it to be held.

#include "metadata/registry.hpp"
#include "os/brief_lock.hpp"
#include "report/dispatch.hpp"
#include "resources/block_reports.hpp"
#include "resources/bytes.hpp"
#include "resources/thread_binding.hpp"
#include "resources/upstream_watch.hpp"

#include <pmr_debug/temp_resource.hpp>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory_resource>

namespace pmr_debug::detail {

inline constexpr unsigned char temp_fresh = 0xAA;
inline constexpr unsigned char temp_guard = 0xBB;
inline constexpr unsigned char temp_dead = 0xDD;
/// What lies behind the cursor is filled, so that a write there is found: at least so many bytes, and then so many at a
/// time. Not all of it, as a buffer may be address space that is never to be touched.
inline constexpr std::size_t temp_least_ahead = std::size_t{1} << 14;
inline constexpr std::size_t temp_ahead = std::size_t{1} << 16;
/// What a rewind verifies of that.
inline constexpr std::size_t temp_rewind_ahead = std::size_t{1} << 12;
/// Most bytes of the canary before the first block of a chunk.
inline constexpr std::size_t temp_front = 64;
// Of births, deaths, and uses of a resource whose policy keeps no traces.
inline constexpr unsigned temp_rare_frames = 16;

enum class temp_source : std::uint8_t { given, upstream, pages };

struct temp_chunk {
    std::uintptr_t begin = 0;  // behind the canary before the first block
    std::size_t size = 0;
    std::size_t front = 0;   // bytes before `begin`
    std::size_t canary = 0;  // of those, so many next to it are filled
    std::size_t alignment = 0;
    std::uintptr_t next = 0;  // where the cursor stood when the arena went on to another chunk
    std::uintptr_t used = 0;  // what lies behind was never handed out
    std::uintptr_t high = 0;  // what lies between the cursor and this is 0xDD, if filled
    /// Behind the last byte that may be handed out, filled and verified: the end, unless a live block of another
    /// resource was found there.
    std::uintptr_t limit = 0;
    std::size_t first_record = 0;  // index of the first record of this chunk
    temp_chunk* older = nullptr;
    temp_source from = temp_source::given;

    // All of it.
    [[nodiscard]] std::uintptr_t start() const noexcept { return begin - front; }
    [[nodiscard]] std::size_t bytes() const noexcept { return front + size; }
};

enum class temp_state : std::uint8_t { live, freed, gone };  // gone: rewound or released

struct temp_record {
    std::uintptr_t address = 0;
    std::size_t size = 0;
    std::uint64_t serial = 0;
    trace_id allocated = trace_id::none;
    trace_id freed = trace_id::none;
    std::uint32_t alloc_thread = 0;
    std::uint32_t free_thread = 0;
    std::uint8_t alignment_log2 = 0;
    temp_state state = temp_state::live;
    bool was_freed = false;  // gone, but deallocated before
    bool covered = false;    // by a live block of another resource: neither verified nor filled any more

    [[nodiscard]] std::size_t alignment() const noexcept { return std::size_t{1} << alignment_log2; }
};

struct temp_damage {
    error_kind kind = error_kind::overrun;
    temp_record block;  // address 0: unknown
    std::uintptr_t first_bad = 0;
    std::size_t bad_bytes = 0;
    std::uint8_t bad_value = 0;
    std::uint8_t expected = 0;
    bool never_used = false;  // the bytes were never handed out; `block` lies before them
    covering_block covering;  // the bytes may be right: they stay as they are
};

/// A request on its way.
struct temp_request {
    std::size_t bytes = 0;
    std::size_t alignment = 1;
    trace_id here = trace_id::none;
    std::uint32_t thread = 0;

    [[nodiscard]] std::size_t room() const noexcept { return bytes != 0 ? bytes : 1; }
};

[[nodiscard]] constexpr std::uintptr_t align_up(std::uintptr_t p, std::size_t alignment) noexcept {
    return (p + (alignment - 1)) & ~(static_cast<std::uintptr_t>(alignment) - 1);
}

/// The next multiple of \p alignment that is none of twice that.
[[nodiscard]] constexpr std::uintptr_t align_exactly(std::uintptr_t p, std::size_t alignment) noexcept {
    return align_up(p, alignment) | alignment;
}

struct temp_core {
    enum class placed : std::uint8_t { done, overflow, needs_upstream, needs_pages, no_records, damaged };

    // Read by every call, written never.
    std::pmr::memory_resource* upstream = nullptr;  // the one given, or `watch` over it
    std::pmr::memory_resource* own_upstream = nullptr;
    temp_window* window = nullptr;
    temp_shape shape;
    unsigned alloc_frames = 0;
    unsigned free_frames = 0;
    std::size_t guard = 0;
    bool fills = false;
    bool watched = false;  // Memcheck or AddressSanitizer is at work, see temp_tools.cpp
    bool exact = false;    // blocks are aligned to no more than was asked for
    bool special = false;  // watched or exact
    temp_options options;
    std::uintptr_t buffer = 0;
    std::size_t buffer_bytes = 0;               // 0: there is none
    std::atomic<std::size_t> claimed_bytes{0};  // as buffer_bytes, for other arenas to see
    metadata::resource_record* self = nullptr;
    error_tally errors;

    alignas(64) os::brief_lock lock;
    temp_window own_window;
    temp_chunk* chunk = nullptr;  // the one the cursor is in
    temp_record* records = nullptr;
    std::size_t count = 0;
    std::size_t capacity = 0;
    std::size_t record_bytes = 0;
    std::size_t newest_live = 0;  // lifo: index of it + 1
    std::size_t needed = 0;       // offset of the cursor if there were one endless buffer, and no guards
    std::size_t most_needed = 0;
    std::size_t dead_bytes = 0;
    bool spilled = false;  // the buffer did not suffice
    std::uint64_t overflows = 0;
    statistics used;
    temp_record* past = nullptr;
    std::size_t past_next = 0;
    temp_chunk* waiting = nullptr;  // quarantine, oldest first, linked by `older`
    temp_chunk* waiting_last = nullptr;
    std::size_t waiting_bytes = 0;
    std::size_t page_bytes = 0;  // from the system
    std::size_t held_bytes = 0;  // from the upstream
    std::size_t next_chunk_bytes = 0;
    temp_mark* marks = nullptr;  // all that exist, youngest first

    alignas(64) thread_binding thread;
    upstream_watch watch;

    static temp_core* make(std::pmr::memory_resource* upstream, void* buffer, std::size_t bytes, const temp_options& o,
                           const policy& p, const std::pmr::memory_resource* owner, temp_window* window, trace_id born);
    void end(trace_id died) noexcept;

    // ---- temp_memory.cpp: chunks, records, rewinding
    [[nodiscard]] std::size_t extent(std::size_t bytes) const noexcept { return (bytes != 0 ? bytes : 1) + guard; }
    [[nodiscard]] std::size_t first_chunk() const noexcept {
        return options.first_chunk_bytes > sizeof(std::max_align_t) ? options.first_chunk_bytes
                                                                    : sizeof(std::max_align_t);
    }
    bool grow_records_held() noexcept;
    [[nodiscard]] temp_record* find_held(std::uintptr_t p) noexcept;
    /// The chunk that blocks are in, at \p p, or null.
    [[nodiscard]] temp_chunk* chunk_held(std::uintptr_t p) const noexcept;
    /// The block that holds \p p, else the one that lies before it in its chunk, else null.
    [[nodiscard]] temp_record* find_near_held(std::uintptr_t p) noexcept;
    [[nodiscard]] const temp_record* find_past_held(std::uintptr_t p, bool exactly) const noexcept;
    /// Effects: fills what was never handed out behind \p end, the cursor to be.
    void fill_ahead_held(std::uintptr_t end) noexcept;
    /// The highest of the past blocks in [from, to) that are remembered, or null.
    [[nodiscard]] const temp_record* last_past_held(std::uintptr_t from, std::uintptr_t to) const noexcept;
    /// Effects: gets a chunk that \p r fits in. Throws: std::bad_alloc, and what the upstream throws.
    void grow(const temp_request& r, temp_source from);
    void mark_free_held(temp_record& r, trace_id here, std::uint32_t me) noexcept;
    [[nodiscard]] temp_position position_held() const noexcept;
    /// Effects: verifies and forgets everything behind \p to.
    /// \p ahead: so much is verified behind the cursor, too.
    void unwind(const temp_position& to, trace_id here, std::uint32_t me, std::size_t ahead) noexcept;
    /// Effects: verifies waiting chunks and gives them back, until no more than \p keep bytes wait. Returns: true if
    ///   there was one.
    bool drain(std::size_t keep) noexcept;
    [[nodiscard]] temp_position start_held() noexcept;
    // ---- temp_marks.cpp
    void open_mark(temp_mark& m, trace_id here) noexcept;
    /// Effects: rewinds to \p m, or reports why not. \p last: it goes out of existence afterwards.
    void close_mark(temp_mark& m, trace_id here, std::uint32_t me, bool last) noexcept;
    void void_marks(bool dead) noexcept;

    // ---- temp_errors.cpp
    /// For the registry: see describe_address_function.
    static bool describe_address(void* core, std::uintptr_t address, metadata::address_finding* out) noexcept;
    /// Effects: looks whether bytes of [from, to) are not \p value, and makes them so: each damage is told once. If a
    ///   live block of another resource covers one of them all stay as they are, and \p out says so.
    [[nodiscard]] bool repair_held(const temp_chunk* c, std::uintptr_t from, std::uintptr_t to, unsigned char value,
                                   temp_damage& out) const noexcept;
    /// Effects: from \p from on the memory of \p c is another's.
    void cut_held(temp_chunk& c, std::uintptr_t from) noexcept;
    [[nodiscard]] bool spoilt_held(temp_record& r, temp_damage& out) noexcept;
    /// Effects: looks for a write before the first block of \p c, and repairs it.
    [[nodiscard]] bool front_spoilt_held(temp_chunk& c, temp_damage& out) noexcept;
    /// Effects: tells of such writes. \p c is the arena's no more.
    void verify_front(temp_chunk& c) noexcept;
    /// Effects: looks for a write to dead memory, or to memory never handed out, in \p c, and repairs it.
    [[nodiscard]] bool stale_held(temp_chunk& c, std::uintptr_t from, std::uintptr_t to, temp_damage& out) noexcept;
    /// Effects: tells of what was written to where the block of \p r would lie, and leaves it out.
    void skip_damaged(const temp_request& r) noexcept;
    std::size_t verify(std::size_t first_record) noexcept;
    std::size_t verify_dead(temp_chunk& c, std::uintptr_t from, std::uintptr_t to) noexcept;
    /// Effects: verifies what lies behind the cursor, \p ahead bytes; SIZE_MAX: all of all chunks that is filled.
    std::size_t verify_unused(std::size_t ahead) noexcept;
    void tell(const temp_damage& d) noexcept;
    /// Returns: how many blocks are live.
    std::size_t tell_live(std::size_t first_record, std::string_view hint,
                          error_kind kind = error_kind::live_at_destruction) noexcept;
    /// Effects: live blocks and the memory are remembered beyond the arena's end.
    void leave_remains() noexcept;
    void tell_request(error_kind kind, const void* p, const temp_request& r) noexcept;
    void tell_mark(const temp_mark& m, std::string_view hint) noexcept;
    void tell_shared_buffer() noexcept;
    [[noreturn]] void refuse_request(const temp_request& r);
    void overflow(const temp_request& r);
    [[noreturn]] void fail();
    void deallocate_oddly(void* p, const temp_request& given) noexcept;

    /// As every entry that is not allocate or deallocate does it.
    std::uint32_t enter(trace_id here) noexcept;

    /// Effects: puts the block of \p r at the cursor, if it can. \p out: its address.
    template <temp_shape S>
    placed place_held(const temp_request& r, void*& out) noexcept {
        if (special) [[unlikely]] {
            const auto place = exact ? &temp_core::place_unwatched_held<S, true> : &temp_core::place_unwatched_held<S>;
            return watched ? place_watched_held(r, out, place) : (this->*place)(r, out);
        }
        return place_unwatched_held<S>(r, out);
    }

    // ---- temp_tools.cpp
    /// Effects: [from, to) is this library's or the user's to touch / nobody's; both nothing unless `watched`.
    void open_memory(std::uintptr_t from, std::uintptr_t to) const noexcept;
    void close_memory(std::uintptr_t from, std::uintptr_t to) const noexcept;
    /// Effects: fills what no live block lies in, if it is to be filled, and closes it.
    void bury_memory(std::uintptr_t from, std::uintptr_t to) const noexcept;

private:
    using place_function = placed (temp_core::*)(const temp_request&, void*&) noexcept;
    template <temp_shape S, bool Exact = false>
    placed place_unwatched_held(const temp_request& r, void*& out) noexcept;
    placed place_watched_held(const temp_request& r, void*& out, place_function place) noexcept;
    /// Where the block of \p r would lie at the cursor.
    template <bool Exact>
    [[nodiscard]] std::uintptr_t place_of(const temp_request& r) const noexcept {
        return Exact ? align_exactly(window->next, r.alignment) : align_up(window->next, r.alignment);
    }
    void bad_pointer(void* p, const temp_request& given) noexcept;
    void bury_held(std::size_t from, trace_id here, std::uint32_t me) noexcept;
    void retire(temp_chunk* c) noexcept;
    void give_back(temp_chunk* c) noexcept;
};

[[nodiscard]] inline bool all_bytes(std::uintptr_t p, std::size_t bytes, unsigned char value) noexcept {
    return all_bytes(reinterpret_cast<const unsigned char*>(p), bytes, value);
}

inline void fill_bytes(std::uintptr_t p, std::size_t bytes, unsigned char value) noexcept {
    std::memset(reinterpret_cast<void*>(p), value, bytes);
}

[[nodiscard]] block_info describe(const temp_record& r) noexcept;

template <temp_shape S, bool Exact>
temp_core::placed temp_core::place_unwatched_held(const temp_request& r, void*& out) noexcept {
    const std::size_t needed_then = align_up(buffer + needed, r.alignment) - buffer + r.room();
    const bool fits = buffer_bytes != 0 && !spilled && needed_then <= buffer_bytes;
    if (buffer_bytes != 0 && !fits && !spilled) [[unlikely]] {
        return placed::overflow;
    }
    const placed elsewhere = fits ? placed::needs_pages : placed::needs_upstream;
    if (chunk == nullptr || (chunk->from == temp_source::upstream) == fits) [[unlikely]] {
        return elsewhere;
    }
    const std::uintptr_t at = place_of<Exact>(r);
    if (at > window->end || r.room() + guard > window->end - at) [[unlikely]] {
        return elsewhere;
    }
    if (count == capacity && !grow_records_held()) [[unlikely]] {
        return placed::no_records;
    }
    const std::uintptr_t end = at + r.room() + guard;
    if constexpr (S.fill) {
        if (fills && chunk->high > window->next) {
            const std::uintptr_t stop = end < chunk->high ? end : chunk->high;
            if (!all_bytes(window->next, stop - window->next, temp_dead)) [[unlikely]] {
                return placed::damaged;
            }
        }
        if (fills && end + temp_least_ahead > chunk->high) [[unlikely]] {
            fill_ahead_held(end);
        }
        if (fills) {
            fill_bytes(at, r.bytes, temp_fresh);
        }
        fill_bytes(at + r.bytes, end - at - r.bytes, temp_guard);
    }
    window->next = end;
    needed = needed_then;
    most_needed = needed > most_needed ? needed : most_needed;
    temp_record& kept = records[count++];
    kept = {};
    kept.address = at;
    kept.size = r.bytes;
    kept.serial = ++used.total_allocations;
    kept.allocated = r.here;
    kept.alloc_thread = r.thread;
    kept.alignment_log2 = static_cast<std::uint8_t>(__builtin_ctzl(r.alignment));
    newest_live = count;
    ++used.live_blocks;
    used.live_bytes += r.bytes;
    used.total_bytes += r.bytes;
    used.peak_blocks = used.live_blocks > used.peak_blocks ? used.live_blocks : used.peak_blocks;
    used.peak_bytes = used.live_bytes > used.peak_bytes ? used.live_bytes : used.peak_bytes;
    out = reinterpret_cast<void*>(at);
    return placed::done;
}

}  // namespace pmr_debug::detail
