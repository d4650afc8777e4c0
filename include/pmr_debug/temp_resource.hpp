#pragma once

#include <pmr_debug/detail/language.hpp>
#if PMR_DEBUG_LANGUAGE

/// \file
/// A bump arena for temporary memory: allocation moves a cursor, memory comes back by rewinding to a mark or all at
/// once. It does what std::pmr::monotonic_buffer_resource does, and watches how it is used.
///
/// \verbatim
///   buffer  |##block##|guard|####block####|guard| pad |##block##|guard|          free          |
///           ^ start                       ^ mark: rewinding moves the cursor here         ^ end
///                                                                     ^ cursor
///   chunks from the upstream follow once the buffer is full. Fresh blocks are 0xAA, guards 0xBB; freed, rewound and
///   released memory is 0xDD, and verified before it is used again.
/// \endverbatim
///
/// \code
///   pmr_debug::temp_resource<1024> arena({.name = "frame"});  // 1024 bytes within the object
///   {
///       pmr_debug::temp_mark here(arena);
///       std::pmr::vector<int> v({1, 2, 3}, &arena);
///   }                                                         // rewound: the cursor is back
///   pmr_debug::temp_resource growing;                         // no buffer: chunks from the upstream
///   std::pmr::string s("a string that does not fit into itself", &growing);
///   assert(arena.ok() && growing.ok());
/// \endcode
///
/// Marks and the stack discipline are those of the temporary allocators of the Bitsquid and Stingray engines.

#include <pmr_debug/detail/construction.hpp>
#include <pmr_debug/policy.hpp>
#include <pmr_debug/report.hpp>
#include <pmr_debug/statistics.hpp>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory_resource>
#include <string_view>

namespace pmr_debug {

namespace detail {

struct temp_core;
struct temp_chunk;

/// The part of a policy that shapes the code of a temp resource. Frame counts and guard bytes are data.
struct temp_shape {
    threading threads = threading::single_checked;
    bool checks = true;       ///< records of blocks are kept
    bool traces = true;       ///< the records hold trace ids
    bool fill = true;         ///< memory is filled, or has guards
    bool reuse_last = false;  ///< freeing the last block moves the cursor back

    friend constexpr bool operator==(const temp_shape&, const temp_shape&) = default;
};

[[nodiscard]] constexpr temp_shape temp_shape_of(const policy& p) noexcept {
    // Without checks nobody would be told about a second thread.
    const bool alone = p.threads == threading::unchecked || (p.threads == threading::single_checked && !p.checks);
    return {.threads = alone ? threading::unchecked : p.threads,
            .checks = p.checks,
            .traces = p.alloc_frames != 0 || p.free_frames != 0,
            .fill = p.fill || p.guard_bytes != 0,
            .reuse_last = !p.checks && p.freed == reuse::immediate};
}

/// What is left of the current chunk.
struct temp_window {
    std::uintptr_t next = 0;
    std::uintptr_t end = 0;

    /// Returns: room for a block, or null.
    [[nodiscard]] void* take(std::size_t bytes, std::size_t alignment) noexcept {
        const std::size_t room = bytes != 0 ? bytes : 1;
        const std::uintptr_t at = (next + (alignment - 1)) & ~(static_cast<std::uintptr_t>(alignment) - 1);
        if (at > end || room > end - at) [[unlikely]] {
            return nullptr;
        }
        next = at + room;
        return reinterpret_cast<void*>(at);
    }
    void give_back_last(void* p, std::size_t bytes) noexcept {
        const auto at = reinterpret_cast<std::uintptr_t>(p);
        if (at + (bytes != 0 ? bytes : 1) == next) {
            next = at;
        }
    }
};

/// Where an arena stood.
struct temp_position {
    temp_chunk* chunk = nullptr;
    std::uintptr_t next = 0;
    std::size_t records = 0;
    std::size_t needed = 0;
    std::size_t next_chunk_bytes = 0;
    bool spilled = false;
};

/// Entry points of the compiled shapes. Defined and explicitly instantiated in the library for every valid shape.
template <temp_shape S>
struct temp_engine {
    static void* allocate(temp_core* core, std::size_t bytes, std::size_t alignment);
    static void deallocate(temp_core* core, void* p, std::size_t bytes, std::size_t alignment) noexcept;
};

template <std::size_t N>
struct temp_storage {
    [[nodiscard]] void* data() noexcept { return inside; }
    alignas(std::max_align_t) unsigned char inside[N];
};
template <>
struct temp_storage<0> {
    [[nodiscard]] static constexpr void* data() noexcept { return nullptr; }
};

}  // namespace detail

/// The default policy, for one thread: a bump arena belongs to one call chain, so a second thread is nearly always a
/// mistake, and is reported. An arena shared on purpose takes `default_policy`.
inline constexpr policy temp_policy{.threads = threading::single_checked};

/// What happens when a request does not fit the buffer.
enum class temp_overflow : std::uint8_t {
    report,  ///< arena_overflow, then chunks from the upstream
    silent,  ///< chunks from the upstream
    refuse,  ///< arena_overflow, then bad_alloc. Without a buffer: chunks, as there is nothing to overflow
};

/// Options of a temp resource.
struct temp_options {
    std::string_view name{};  ///< shown in reports; copied; beyond 63 bytes, or from a NUL on, cut: then … ends it
    report_handler* handler = nullptr;  ///< null: the default handler
    temp_overflow overflow = temp_overflow::report;
    std::size_t first_chunk_bytes = 4096;  ///< least size of the first chunk from the upstream; each next one doubles
    /// With checks and fill: released chunks wait, up to this many bytes, and are verified, before the upstream gets
    /// them back. 0: it gets them at once.
    std::size_t quarantine_bytes = std::size_t{64} * 1024;
    std::size_t freed_records = 1024;  ///< rewound and released blocks that are remembered
    std::size_t buffer_alignment = 1;  ///< bad_alignment if the buffer is aligned to less
    bool lifo = false;                 ///< blocks freed out of order are reported as out_of_order_rewind
    bool audit_winked_out = false;     ///< live blocks at release() or rewind are reported as live_at_destruction
};

/// How well an arena's size fits its use. Bytes; "needed" counts what one buffer without guards would have had to hold,
/// padding included.
struct temp_advice {
    std::size_t buffer_bytes = 0;     ///< the initial buffer; 0: none
    std::size_t needed_bytes = 0;     ///< since the last release or rewind
    std::size_t most_needed = 0;      ///< most of that so far
    std::size_t live_bytes = 0;       ///< in live blocks
    std::size_t dead_bytes = 0;       ///< freed, but taken until release or rewind. High: the arena lives too long
    double dead_ratio = 0;            ///< dead_bytes / (live_bytes + dead_bytes)
    std::size_t suggested_bytes = 0;  ///< buffer that would have held all, rounded up to 64
    std::uint64_t overflows = 0;      ///< times the buffer did not suffice
};

class temp_resource_base;

/// Remembers where an arena stands, and takes it back there when destroyed. Marks are rewound in the opposite order of
/// their making; the blocks allocated since are gone.
///
/// Ending a mark while a younger one is open, rewinding it twice, or through another arena is reported as
/// out_of_order_rewind, with the trace where it was made, and ignored. release() and the arena's death void marks:
/// their destructors then do nothing.
class temp_mark {
public:
    explicit temp_mark(temp_resource_base& arena) noexcept;
    temp_mark(const temp_mark&) = delete;
    temp_mark& operator=(const temp_mark&) = delete;
    ~temp_mark();

    /// Effects: rewinds now; the destructor then does nothing.
    void rewind() noexcept;

private:
    friend struct detail::temp_core;
    friend class temp_resource_base;

    detail::temp_core* core_;  // null once the arena is dead
    const temp_resource_base* arena_;
    temp_mark* older_ = nullptr;
    temp_mark* newer_ = nullptr;
    detail::temp_position at_;
    trace_id taken_ = trace_id::none;
    bool open_ = true;  // may still be rewound
};

/// What every instantiation shares: everything but the calls themselves. Take this as a parameter.
class temp_resource_base : public std::pmr::memory_resource {
public:
    temp_resource_base(const temp_resource_base&) = delete;
    temp_resource_base& operator=(const temp_resource_base&) = delete;

    /// Effects: forgets all blocks and marks; chunks go back to the upstream, through the quarantine if there is one.
    ///   Live blocks are fine, unless the options ask for the audit.
    void release() noexcept;
    /// Returns: where the arena stands.
    [[nodiscard]] temp_mark mark() noexcept { return temp_mark(*this); }
    /// Effects: as m.rewind(), if \p m is a mark of this arena; otherwise reports out_of_order_rewind.
    void rewind(temp_mark& m) noexcept;

    [[nodiscard]] std::pmr::memory_resource* upstream_resource() const noexcept;
    [[nodiscard]] std::string_view name() const noexcept;
    /// `upstream_bytes` are chunks held, quarantine included. Rewound and released blocks are not live, but do not
    /// count as deallocations. With checks off only the upstream's and overhead bytes are known.
    [[nodiscard]] statistics stats() const noexcept;
    [[nodiscard]] temp_advice advice() const noexcept;
    /// Effects: writes advice() as one line of text, with what to do about it.
    void write_advice(text_sink sink, void* context) const noexcept;
    [[nodiscard]] error_counts errors() const noexcept;
    /// True if no error of any kind was reported so far.
    [[nodiscard]] bool ok() const noexcept;
    /// Effects: verifies every guard, every freed byte, and what was never handed out and is filled; reports damage,
    ///   and repairs it, so that it is reported once.
    /// Returns: how many damaged places were found.
    std::size_t check() noexcept;
    /// Effects: reports blocks live now, grouped by call path, as error_kind::leak. Returns: how many; 0 with checks
    ///   off.
    std::size_t report_leaks() noexcept;
    /// Effects: under threading::single_checked, makes the next thread to use the resource its owner: to hand it over.
    ///   Otherwise none. Preconditions: nobody uses the resource meanwhile, and what was done before happens before
    ///   what the next thread does.
    void rebind_thread() noexcept;

protected:
    temp_resource_base(std::pmr::memory_resource* upstream, void* buffer, std::size_t bytes, const temp_options& o,
                       const policy& p);
    /// Reports blocks still live as live_at_destruction; fills the buffer with 0xDD.
    ~temp_resource_base() override;

    // Reached only by calls to a resource that was destroyed: reports destroyed_resource to the default handler.
    void* do_allocate(std::size_t bytes, std::size_t alignment) override;
    void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override;
    [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override;

    detail::temp_core* core_ = nullptr;
    detail::temp_window window_;  // used with checks off; otherwise the core has its own, out of harm's way

private:
    friend class temp_mark;
};

/// A bump arena under a policy: within the object (N bytes), on a buffer of the caller's (N = 0), or on chunks.
///
/// What overflows the buffer is decided as if there were no guards, so that a program overflows under every policy or
/// under none; what guards need beyond the buffer comes from pages of the arena's own. An overflow is reported once
/// until the next release or rewind behind it, with the bytes that one buffer would have had to hold so far.
///
/// With `fill`, memory that was not handed out yet is 0xDD: at first 64 KiB of a buffer or chunk, then at least 16 KiB
/// behind the cursor. A write there is told as overrun, with the block before it as the nearest one: by release(),
/// check(), the end, before the bytes are handed out, when a chunk goes back; by a rewind for the next 4 KiB.
///
/// Blocks freed one by one are not used again before a rewind or release; with checks off and `reuse::immediate` the
/// last one is. `dead` and `protect_metadata` do not apply: chunks are the upstream's.
///
/// Preconditions: a given buffer outlives the arena: it is verified and filled at the end. Throws: std::bad_alloc, and
/// what the upstream throws. A null upstream is reported and ends the process. Thread safety: as the policy says;
/// single_checked as in tracking_resource; marks belong to the thread that made them.
/// Reports: double_free, invalid_free (also: freed after release or rewind, with the traces of both), interior_free,
/// null_free, wrong_resource, size_mismatch, alignment_mismatch, overrun, write_after_free (the block was deallocated),
/// use_after_free (written after release or rewind), foreign_thread, bad_alignment, arena_overflow,
/// out_of_order_rewind, live_at_destruction, upstream_null, upstream_misaligned, upstream_overlap (also: two arenas on
/// one buffer, naming the other; the second one does without), null_upstream, cycle,
/// destroyed_resource.
template <std::size_t N = 0, policy P = temp_policy>
class temp_resource final : private detail::temp_storage<N>, public temp_resource_base {
    static_assert(is_valid(P), "frames or guard bytes out of range, or traces, guards or fills without checks");
    static constexpr detail::temp_shape shape = detail::temp_shape_of(P);
    static constexpr bool plain = !shape.checks && shape.threads == threading::unchecked;
    using engine = detail::temp_engine<shape>;

public:
    /// Upstream: std::pmr::new_delete_resource().
    temp_resource() : temp_resource(temp_options{}) {}
    explicit temp_resource(detail::empty_braces /*options*/) : temp_resource() {}
    explicit temp_resource(const temp_options& o) : temp_resource(std::pmr::new_delete_resource(), o) {}
    explicit temp_resource(detail::upstream_argument upstream, const temp_options& o = {})
        : temp_resource_base(upstream.get(), detail::temp_storage<N>::data(), N, o, P) {}
    /// On \p bytes at \p buffer. Any integer will do for \p bytes, a negative one counts as 0; but not `{}`, which
    /// means options.
    temp_resource(void* buffer, std::integral auto bytes, const temp_options& o = {}) requires(N == 0)
        : temp_resource(buffer, bytes, std::pmr::new_delete_resource(), o) {}
    temp_resource(void* buffer, std::integral auto bytes, detail::upstream_argument upstream,
                  const temp_options& o = {}) requires(N == 0)
        : temp_resource_base(upstream.get(), buffer, detail::at_least_zero(bytes), o, P) {}
    /// The other way round: a resource is no buffer.
    template <class Resource>
    requires std::convertible_to<Resource*, std::pmr::memory_resource*> temp_resource(Resource* upstream,
                                                                                      std::integral auto bytes,
                                                                                      const temp_options& o = {})
    = delete;

private:
    void* do_allocate(std::size_t bytes, std::size_t alignment) override {
        if constexpr (plain) {
            if (void* const p = window_.take(bytes, alignment); p != nullptr) [[likely]] {
                return p;
            }
        }
        return engine::allocate(core_, bytes, alignment);
    }
    void do_deallocate([[maybe_unused]] void* p, [[maybe_unused]] std::size_t bytes,
                       [[maybe_unused]] std::size_t alignment) override {
        if constexpr (!plain) {
            engine::deallocate(core_, p, bytes, alignment);
        } else if constexpr (shape.reuse_last) {
            window_.give_back_last(p, bytes);
        }
    }
};

/// By the naming of the other resources: the policy first.
template <policy P, std::size_t N = 0>
using basic_temp_resource = temp_resource<N, P>;

}  // namespace pmr_debug

#endif  // PMR_DEBUG_LANGUAGE
