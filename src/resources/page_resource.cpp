#include "metadata/arena.hpp"
#include "metadata/block_table.hpp"
#include "metadata/registry.hpp"
#include "os/other_tools.hpp"
#include "os/thread.hpp"
#include "os/virtual_memory.hpp"
#include "report/comparison.hpp"
#include "report/dispatch.hpp"
#include "resources/block_reports.hpp"
#include "resources/chain_check.hpp"
#include "resources/page_ranges.hpp"
#include "resources/usage.hpp"

#include <pmr_debug/page_resource.hpp>

#include <atomic>
#include <bit>
#include <mutex>
#include <new>

namespace pmr_debug {

namespace {

using outcome = metadata::block_table::outcome;

constexpr unsigned frames_kept = 16;
constexpr std::size_t freed_kept = 4096;
// Address space, not memory: records of several times as many blocks as the system allows mappings by default.
constexpr std::size_t records_reserve = std::size_t{1} << 28;
constexpr const char* type_name = "page_resource";

// Pages freed that the system would not unmap.
struct stuck_pages {
    void* address;
    std::size_t bytes;
    stuck_pages* next;
};

// The whole pages within [p, p + bytes).
struct page_range {
    std::uintptr_t from;
    std::size_t bytes;

    page_range(const void* p, std::size_t n) noexcept : from(0), bytes(0) {
        const std::size_t page = os::page_size();
        const auto at = reinterpret_cast<std::uintptr_t>(p);
        from = os::round_up(at, page);
        const std::uintptr_t to = (at + n) & ~(page - 1);
        bytes = to > from ? to - from : 0;
    }
    [[nodiscard]] void* address() const noexcept { return reinterpret_cast<void*>(from); }
};

// Bytes of the whole pages a block takes. Preconditions: bytes <= SIZE_MAX / 2.
std::size_t pages_of(std::size_t bytes) noexcept {
    return os::round_up(bytes != 0 ? bytes : 1, os::page_size());
}

}  // namespace

namespace detail {

struct page_core {
    metadata::arena memory;
    metadata::block_table blocks;
    // Guarded ranges by their first page; the alignment stands for the tier: 1 << tier.
    metadata::block_table guards;
    usage_counters usage;
    error_tally errors;
    metadata::resource_record* self = nullptr;
    std::size_t limit_bytes = 0;
    bool watched = os::under_valgrind() || os::under_asan();
    std::atomic<std::uint64_t> mapped{0};
    std::atomic<std::uint64_t> guarded{0};
    std::atomic<std::uint64_t> guard_count{0};
    std::atomic<std::uint64_t> unguarded{0};
    std::atomic<std::uint64_t> stuck{0};
    os::spin_lock stuck_lock;
    stuck_pages* stuck_list = nullptr;

    [[nodiscard]] block_reporter reports() noexcept { return {.errors = errors, .self = self, .blocks = blocks}; }

    /// Effects: what is left of the last page of a block is nobody's to touch, or is again, for Memcheck and
    ///   AddressSanitizer. Pages are zeroed, so all of it is defined. It is opened before the pages go, as the
    ///   sanitizer remembers addresses.
    void close_rest(const void* p, std::size_t bytes) const noexcept {
        if (watched) {
            os::poison(static_cast<const std::byte*>(p) + bytes, pages_of(bytes) - bytes);
            os::tell_inaccessible(static_cast<const std::byte*>(p) + bytes, pages_of(bytes) - bytes);
        }
    }
    void open_rest(const void* p, std::size_t bytes) const noexcept {
        if (watched) {
            os::unpoison(static_cast<const std::byte*>(p) + bytes, pages_of(bytes) - bytes);
            os::tell_defined(static_cast<const std::byte*>(p) + bytes, pages_of(bytes) - bytes);
        }
    }

    /// Effects: counts \p bytes as mapped unless the limit is in the way, which is reported if \p report_it.
    bool take(std::size_t bytes, std::size_t requested, std::size_t alignment) noexcept {
        std::uint64_t now = mapped.load(std::memory_order_relaxed);
        do {
            if (limit_bytes != 0 && (now > limit_bytes || bytes > limit_bytes - now)) {
                reports().limit(limit_bytes, now, requested, alignment);
                return false;
            }
        } while (!mapped.compare_exchange_weak(now, now + bytes, std::memory_order_relaxed));
        return true;
    }

    /// Effects: unmaps, or keeps for later what the system refuses to unmap.
    void give_back(void* p, std::size_t bytes) noexcept {
        if (os::unmap(p, bytes)) {
            if (stuck.load(std::memory_order_relaxed) != 0) {
                retry_stuck();
            }
            return;
        }
        os::discard(p, bytes);  // a refusal keeps the memory until the address range goes
        stuck.fetch_add(bytes, std::memory_order_relaxed);
        if (void* const node = memory.allocate(sizeof(stuck_pages)); node != nullptr) {
            const std::scoped_lock hold(stuck_lock);
            stuck_list = ::new (node) stuck_pages{p, bytes, stuck_list};
        }  // else it stays counted, and mapped until the process ends
    }

    /// Effects: maps and records a block. Returns: null if that cannot be; it is reported if it is an error.
    void* obtain(std::size_t bytes, std::size_t alignment, trace_id here,
                 void* (*map)(std::size_t bytes, std::size_t alignment) noexcept) noexcept {
        if (!std::has_single_bit(alignment)) {
            reports().request(error_kind::bad_alignment, nullptr, bytes, alignment);
            return nullptr;
        }
        if (bytes > SIZE_MAX / 2 || alignment > SIZE_MAX / 2) {
            return nullptr;
        }
        const std::size_t size = pages_of(bytes);
        if (!take(size, bytes, alignment)) {
            return nullptr;
        }
        void* const p = map(size, alignment);
        if (p == nullptr) {
            mapped.fetch_sub(size, std::memory_order_relaxed);
            return nullptr;
        }
        const outcome recorded = blocks.insert<true>(p, bytes, alignment, here, os::this_thread().number,
                                                     [&]() noexcept { return usage.add<true>(bytes); });
        if (recorded != outcome::done) [[unlikely]] {
            mapped.fetch_sub(size, std::memory_order_relaxed);
            if (recorded == outcome::occupied) {
                metadata::block_entry existing;
                blocks.find(p, existing);
                reports().block(error_kind::upstream_overlap, p, existing, bytes, alignment);
            } else {
                give_back(p, size);
            }
            return nullptr;
        }
        os::add_leak_root(p, size);
        close_rest(p, bytes);
        return p;
    }

    void retry_stuck() noexcept {
        const std::scoped_lock hold(stuck_lock);
        for (stuck_pages** link = &stuck_list; *link != nullptr;) {
            stuck_pages* const node = *link;
            if (!os::unmap(node->address, node->bytes)) {
                return;  // the limit is still in the way
            }
            stuck.fetch_sub(node->bytes, std::memory_order_relaxed);
            *link = node->next;
            memory.free(node, sizeof(stuck_pages));
        }
    }

    /// Effects: forgets the guard that starts at \p page, if it ends before \p end. With \p remove the pages become
    ///   accessible; without, the mapping is about to go. Returns: false if the system refuses.
    bool drop_guard(std::uintptr_t page, std::uintptr_t end, bool remove) noexcept {
        void* const p = reinterpret_cast<void*>(page);
        metadata::block_entry e;
        if (!guards.find(p, e) || e.size > end - page) {
            return true;
        }
        const auto tier = static_cast<os::guard_tier>(std::countr_zero(e.alignment));
        // The operating system floor has a budget for protected ranges, so those are always undone.
        if ((remove || tier == os::guard_tier::protect) && !os::remove_guard(p, e.size, tier)) {
            return false;
        }
        if (guards.erase(p, trace_id::none, 0, e) == outcome::done) {
            guarded.fetch_sub(e.size, std::memory_order_relaxed);
            guard_count.fetch_sub(1, std::memory_order_relaxed);
        }
        return true;
    }

    bool drop_guards(const page_range& range, bool remove) noexcept {
        const std::uint64_t count = guard_count.load(std::memory_order_relaxed);
        if (count == 0) {
            return true;
        }
        const std::size_t page = os::page_size();
        const std::uintptr_t end = range.from + range.bytes;
        bool all = true;
        if (range.bytes / page <= 64 + count) {
            for (std::uintptr_t at = range.from; at < end; at += page) {
                all = drop_guard(at, end, remove) && all;
            }
            return all;
        }
        // A large block with few guards: go by the guards. Refused ones stay, so go on above the last one seen.
        for (std::uintptr_t from = range.from;;) {
            std::uintptr_t lowest = end;
            guards.for_each_live([&](const metadata::block_entry& e) noexcept {
                const auto at = reinterpret_cast<std::uintptr_t>(e.address);
                lowest = at >= from && at < lowest ? at : lowest;
            });
            if (lowest == end) {
                return all;
            }
            all = drop_guard(lowest, end, remove) && all;
            from = lowest + page;
        }
    }

    [[nodiscard]] std::uint64_t resident() noexcept {
        // A block that is freed meanwhile counts as zero, and so does a record that is half written.
        const std::uint64_t most = mapped.load(std::memory_order_relaxed);
        std::uint64_t sum = 0;
        blocks.for_each_place([&](const metadata::block_table::place& b) noexcept {
            sum += b.size <= most ? os::resident(b.address, pages_of(b.size)) : 0;
        });
        return sum;
    }
};

namespace {

bool page_owns(void* core, const void* p, metadata::owned_block* out) noexcept {
    metadata::block_entry e;
    if (!static_cast<page_core*>(core)->blocks.find(p, e) || !e.live) {
        return false;
    }
    *out = {.block = metadata::describe(e), .allocated = e.allocated};
    return true;
}

}  // namespace

}  // namespace detail

page_resource::page_resource() : page_resource(options{}) {}

page_resource::page_resource(const options& o) : core_(nullptr) {
    metadata::arena* const shared = metadata::process_arena();
    void* const place = shared != nullptr ? shared->allocate(sizeof(detail::page_core)) : nullptr;
    if (place == nullptr) {
        throw std::bad_alloc();
    }
    auto* const core = ::new (place) detail::page_core;
    if (!core->memory.open(records_reserve, metadata::arena::home::shared) ||
        !core->blocks.open(core->memory, metadata::block_table::max_shards, freed_kept) ||
        !core->guards.open(core->memory, 16, 0)) {
        core->memory.close();
        shared->free(place, sizeof(detail::page_core));
        throw std::bad_alloc();
    }
    core->errors.handler.store(o.handler, std::memory_order_relaxed);
    core->limit_bytes = o.limit_bytes;
    core->self = metadata::register_resource(
        metadata::resource_kind::page, type_name, o.name, static_cast<std::pmr::memory_resource*>(this), nullptr, core,
        capture_trace(frames_kept), detail::page_owns, detail::stats_by_address<page_resource>);
    metadata::set_fork(core->self, [](void* c, os::fork_locks& locks) noexcept {
        auto& mine = *static_cast<detail::page_core*>(c);
        locks.take(mine.stuck_lock);
        mine.blocks.hold(locks);
        mine.guards.hold(locks);
        mine.usage.hold(locks);
        mine.memory.hold(locks);
    });
    core_ = core;
}

page_resource::~page_resource() {
    detail::page_core* const core = core_;
    core->reports().leaks();
    metadata::unregister_resource(core->self, capture_trace(frames_kept));
    // A store that the compiler must keep, for calls to the dead object.
    *const_cast<detail::page_core* volatile*>(&core_) = nullptr;
    core->guards.for_each_live([&](const metadata::block_entry& e) noexcept {
        const auto tier = static_cast<os::guard_tier>(std::countr_zero(e.alignment));
        if (tier == os::guard_tier::protect) {
            os::remove_guard(const_cast<void*>(e.address), e.size, tier);
        }
    });
    core->blocks.for_each_live([&](const metadata::block_entry& e) noexcept {
        core->open_rest(e.address, e.size);
        os::remove_leak_root(e.address, pages_of(e.size));
        core->give_back(const_cast<void*>(e.address), pages_of(e.size));
    });
    core->retry_stuck();
    core->memory.close();
    core->~page_core();
    metadata::process_arena()->free(core, sizeof(detail::page_core));
}

std::size_t page_resource::page_size() noexcept {
    return os::page_size();
}

void* page_resource::do_allocate(std::size_t bytes, std::size_t alignment) {
    detail::page_core* const core = core_;
    if (core == nullptr) {
        detail::report_destroyed(this, type_name, nullptr, bytes, alignment);
        throw std::bad_alloc();
    }
    void* const p = core->obtain(bytes, alignment, capture_trace(frames_kept), os::map);
    if (p == nullptr) {
        core->usage.fail();
        throw std::bad_alloc();
    }
    return p;
}

void* detail::reserve_pages(std::pmr::memory_resource& pages, std::size_t bytes, std::size_t alignment) noexcept {
    const metadata::resource_record* const r = metadata::find_resource(&pages);
    if (r == nullptr || r->kind != metadata::resource_kind::page) {
        return nullptr;
    }
    return static_cast<page_core*>(r->core)->obtain(bytes, alignment, capture_trace(frames_kept), os::reserve);
}

void page_resource::do_deallocate(void* p, std::size_t bytes, std::size_t alignment) {
    detail::page_core* const core = core_;
    if (core == nullptr) {
        detail::report_destroyed(this, type_name, p, bytes, alignment);
        return;
    }
    if (core->reports().is_anothers(p, bytes, alignment)) {
        return;
    }
    metadata::block_entry known;
    const outcome erased = p == nullptr
                               ? outcome::unknown
                               : core->blocks.erase(p, capture_trace(frames_kept), os::this_thread().number, known);
    if (erased != outcome::done) {
        core->reports().bad_pointer(erased, p, known, bytes, alignment);
        return;
    }
    core->usage.remove<true>(known.size);
    core->reports().mismatch(p, known, bytes, alignment);
    const std::size_t size = pages_of(known.size);
    os::remove_leak_root(p, size);
    core->open_rest(p, known.size);
    core->drop_guards(page_range(p, size), false);
    core->mapped.fetch_sub(size, std::memory_order_relaxed);
    core->give_back(p, size);
}

bool page_resource::do_is_equal(const std::pmr::memory_resource& other) const noexcept {
    return detail::is_same(this, other);
}

bool page_resource::release(void* p, std::size_t bytes) noexcept {
    const page_range range(p, bytes);
    if (range.bytes == 0) {
        return false;
    }
    // Where the usual call is refused, fresh pages take the place of the old ones: not where guards may be.
    const bool guarded = core_ == nullptr || core_->guard_count.load(std::memory_order_relaxed) != 0;
    return !guarded ? os::discard(range.address(), range.bytes) : os::discard_in_place(range.address(), range.bytes);
}

bool page_resource::guard(void* p, std::size_t bytes) noexcept {
    const page_range range(p, bytes);
    if (range.bytes == 0) {
        return false;
    }
    const os::guard_tier tier = os::install_guard(range.address(), range.bytes);
    if (tier != os::guard_tier::none) {
        const outcome recorded =
            core_->guards.insert<true>(range.address(), range.bytes, std::size_t{1} << static_cast<unsigned>(tier),
                                       trace_id::none, 0, []() noexcept { return std::uint64_t{0}; });
        if (recorded == outcome::done) {
            core_->guarded.fetch_add(range.bytes, std::memory_order_relaxed);
            core_->guard_count.fetch_add(1, std::memory_order_relaxed);
            return true;
        }
        if (recorded == outcome::occupied) {
            return true;  // guarded twice, against the precondition
        }
        os::remove_guard(range.address(), range.bytes, tier);
    }
    core_->unguarded.fetch_add(range.bytes, std::memory_order_relaxed);
    return false;
}

bool page_resource::unguard(void* p, std::size_t bytes) noexcept {
    return core_->drop_guards(page_range(p, bytes), true);
}

bool page_resource::resize(void* p, std::size_t old_bytes, std::size_t new_bytes) noexcept {
    detail::page_core& core = *core_;
    metadata::block_entry known;
    if (p == nullptr || !core.blocks.find(p, known) || !known.live) {
        core.reports().bad_pointer(known.address != nullptr ? outcome::freed : outcome::unknown, p, known, old_bytes,
                                   known.alignment);
        return false;
    }
    if (known.size != old_bytes) {
        core.reports().block(error_kind::size_mismatch, p, known, old_bytes, known.alignment);
        return false;
    }
    if (new_bytes > SIZE_MAX / 2) {
        return false;
    }
    const std::size_t old_pages = pages_of(old_bytes);
    const std::size_t new_pages = pages_of(new_bytes);
    void* const tail = static_cast<std::byte*>(p) + (old_pages < new_pages ? old_pages : new_pages);
    if (new_pages > old_pages) {
        const std::size_t more = new_pages - old_pages;
        if (!core.take(more, new_bytes, known.alignment)) {
            return false;
        }
        if (!os::map_at(tail, more)) {
            core.mapped.fetch_sub(more, std::memory_order_relaxed);
            return false;
        }
    }
    if (core.blocks.resize(p, old_bytes, new_bytes, known) != outcome::done) {
        // Somebody else freed or resized the block meanwhile, which is the caller's error; leave things as they were.
        if (new_pages > old_pages) {
            core.mapped.fetch_sub(new_pages - old_pages, std::memory_order_relaxed);
            core.give_back(tail, new_pages - old_pages);
        }
        return false;
    }
    if (new_pages != old_pages) {
        os::remove_leak_root(p, old_pages);
        os::add_leak_root(p, new_pages);
    }
    core.usage.resize(old_bytes, new_bytes);
    core.open_rest(p, old_bytes);
    core.close_rest(p, new_bytes);
    if (new_pages < old_pages) {
        core.drop_guards(page_range(tail, old_pages - new_pages), false);
        core.mapped.fetch_sub(old_pages - new_pages, std::memory_order_relaxed);
        core.give_back(tail, old_pages - new_pages);
    }
    return true;
}

std::string_view page_resource::name() const noexcept {
    return metadata::describe(core_->self).name;
}

page_statistics page_resource::pages() const noexcept {
    return {.mapped_bytes = core_->mapped.load(std::memory_order_relaxed),
            .resident_bytes = core_->resident(),
            .guarded_bytes = core_->guarded.load(std::memory_order_relaxed),
            .unguarded_bytes = core_->unguarded.load(std::memory_order_relaxed),
            .stuck_bytes = core_->stuck.load(std::memory_order_relaxed)};
}

statistics page_resource::stats() const noexcept {
    if (core_ == nullptr) {
        return {};
    }
    statistics s = core_->usage.snapshot();
    s.upstream_bytes = core_->mapped.load(std::memory_order_relaxed);
    s.resident_bytes = core_->resident();
    s.overhead_bytes = core_->memory.used();
    return s;
}

error_counts page_resource::errors() const noexcept {
    return detail::snapshot(core_->errors);
}

bool page_resource::ok() const noexcept {
    return detail::ok(core_->errors);
}

}  // namespace pmr_debug
