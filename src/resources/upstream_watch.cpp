#include "resources/upstream_watch.hpp"

#include "os/thread.hpp"
#include "resources/block_reports.hpp"
#include "resources/upstream.hpp"

#include <cstddef>
#include <cstring>

namespace pmr_debug::detail {

namespace {

constexpr std::size_t places = 256;

constexpr int stay_ms = 5;
constexpr unsigned most_stays = 4;       // in an upstream
constexpr unsigned most_stays_all = 40;  // in all of them
constinit std::atomic<unsigned> stays_all{0};

constexpr const char* pool_name = "std::pmr::unsynchronized_pool_resource";
constexpr const char* buffer_name = "std::pmr::monotonic_buffer_resource";

// The pointer to an object's virtual functions tells its type. typeid would, too, but not of a resource that was
// compiled without run-time type information: asking that one ends the program.
const void* functions_of(const std::pmr::memory_resource& r) noexcept {
    const void* table = nullptr;
    std::memcpy(&table, static_cast<const void*>(&r), sizeof table);
    return table;
}

struct standard_functions {
    const void* pool = nullptr;
    const void* buffer = nullptr;
};

// A pool may allocate its tables when it is made: from the stack here.
standard_functions make_standard() noexcept {
    alignas(std::max_align_t) unsigned char room[4096];
    std::pmr::monotonic_buffer_resource buffer(room, sizeof room, std::pmr::null_memory_resource());
    standard_functions f{.buffer = functions_of(buffer)};
    try {
        const std::pmr::unsynchronized_pool_resource pool(&buffer);
        f.pool = functions_of(pool);
    } catch (...) {
        return f;  // another library's pool, of which nothing is known then
    }
    return f;
}

// Returns: the name of the upstream's type if it is for one thread at a time, else null.
const char* one_at_a_time(const std::pmr::memory_resource& upstream) noexcept {
    static const standard_functions standard = make_standard();
    const void* const functions = functions_of(upstream);
    if (functions == standard.pool) {
        return pool_name;
    }
    if (functions == standard.buffer) {
        return buffer_name;
    }
    return metadata::is_unchecked(&upstream) ? "resource with threading::unchecked" : nullptr;
}

}  // namespace

// While a thread is in the upstream. A thread may come again: an upstream may call the resource above it.
class upstream_watch::visit {
public:
    visit(upstream_watch& watch, const void* p, std::size_t bytes, std::size_t alignment) noexcept
        : place_(*watch.place_) {
        const std::uint32_t me = os::this_thread().number;
        std::uint32_t other = 0;
        entered_ = place_.inside.compare_exchange_strong(other, me, std::memory_order_relaxed);
        if (!entered_ && other != me && !watch.told_.exchange(true, std::memory_order_relaxed)) {
            watch.tell(me, other, p, bytes, alignment);
        } else if (entered_ && !os::single_threaded() && place_.latest.load(std::memory_order_relaxed) != me) {
            stay(place_, me);
        }
    }
    visit(const visit&) = delete;
    visit& operator=(const visit&) = delete;
    ~visit() {
        if (entered_) {
            place_.inside.store(0, std::memory_order_relaxed);
        }
    }

private:
    place& place_;
    bool entered_ = false;
};

void upstream_watch::stay(place& p, std::uint32_t me) noexcept {
    p.latest.store(me, std::memory_order_relaxed);
    if (p.stays.load(std::memory_order_relaxed) < most_stays &&
        stays_all.load(std::memory_order_relaxed) < most_stays_all) {
        p.stays.fetch_add(1, std::memory_order_relaxed);
        stays_all.fetch_add(1, std::memory_order_relaxed);
        os::sleep_ms(stay_ms);
    }
}

// By address, and for ever: who comes to live there later is the next to be looked at. Null if there is no room.
upstream_watch::place* upstream_watch::place_of(const void* upstream) noexcept {
    static constinit place known[places];
    for (place& p : known) {
        const void* there = nullptr;
        if (p.upstream.compare_exchange_strong(there, upstream, std::memory_order_relaxed) || there == upstream) {
            return &p;
        }
    }
    return nullptr;
}

std::pmr::memory_resource* upstream_watch::over(std::pmr::memory_resource* upstream, error_tally& errors) noexcept {
    type_ = one_at_a_time(*upstream);
    if (type_ == nullptr) {
        return upstream;
    }
    upstream_ = upstream;
    errors_ = &errors;
    frees_nothing_ = type_ == buffer_name;
    place_ = place_of(upstream);
    place_ = place_ != nullptr ? place_ : &own_;
    place_->stays.store(0, std::memory_order_relaxed);
    return this;
}

void upstream_watch::tell(std::uint32_t me, std::uint32_t other, const void* p, std::size_t bytes,
                          std::size_t alignment) noexcept {
    report r = call_report(self_, error_kind::foreign_thread, p, bytes, alignment);
    r.thread = me;
    r.other_thread = other;
    r.owner.type = type_;
    r.owner.address = upstream_;
    r.hint =
        "this upstream is for one thread at a time: take one for many threads, such as "
        "std::pmr::synchronized_pool_resource, or give each thread a resource and an upstream of its own";
    raise(*errors_, r);
}

void* upstream_watch::do_allocate(std::size_t bytes, std::size_t alignment) {
    const visit here(*this, nullptr, bytes, alignment);
    return ask_upstream(*upstream_, bytes, alignment);
}

void upstream_watch::do_deallocate(void* p, std::size_t bytes, std::size_t alignment) {
    if (frees_nothing_) {
        return upstream_->deallocate(p, bytes, alignment);
    }
    const visit here(*this, p, bytes, alignment);
    upstream_->deallocate(p, bytes, alignment);
}

bool upstream_watch::do_is_equal(const std::pmr::memory_resource& other) const noexcept {
    return this == &other;
}

}  // namespace pmr_debug::detail
