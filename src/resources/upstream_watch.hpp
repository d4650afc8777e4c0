#pragma once

// Notices two threads at once in an upstream that is for one thread at a time, floor 4.
//
// A synchronized resource calls its upstream from any thread and without a lock. If that upstream is known to be for
// one thread at a time, what the resource calls in its place is this, which looks who is inside. Other upstreams are
// called as ever, so that this costs nothing there. A pool that is guarded by a lock is of another type, or the lock is
// held around the calls: two threads are never inside at once then.
//
// A call takes less than a microsecond, so that threads which do not wait for each other may meet seldom, or never on a
// busy machine. So whoever comes after another thread stays a while, the first few times: who does not wait comes in.

#include "metadata/registry.hpp"
#include "report/dispatch.hpp"

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory_resource>

namespace pmr_debug::detail {

class upstream_watch final : public std::pmr::memory_resource {
public:
    upstream_watch() = default;
    upstream_watch(const upstream_watch&) = delete;
    upstream_watch& operator=(const upstream_watch&) = delete;
    ~upstream_watch() override = default;

    /// Effects: looks whether \p upstream is one for a thread at a time: std::pmr's unsynchronized_pool_resource or
    ///   monotonic_buffer_resource, or one of this library's with threading::unchecked.
    /// Returns: what is to be called: this object if so, else \p upstream.
    std::pmr::memory_resource* over(std::pmr::memory_resource* upstream, error_tally& errors) noexcept;

    /// The resource that calls, for reports.
    void belongs_to(const metadata::resource_record* self) noexcept { self_ = self; }

private:
    // Who is in an upstream. Shared by all resources over it.
    struct place {
        std::atomic<const void*> upstream{nullptr};
        std::atomic<std::uint32_t> inside{0};  // thread number
        std::atomic<std::uint32_t> latest{0};  // thread number, too
        std::atomic<unsigned> stays{0};
    };
    class visit;

    static place* place_of(const void* upstream) noexcept;
    static void stay(place& p, std::uint32_t me) noexcept;
    void tell(std::uint32_t me, std::uint32_t other, const void* p, std::size_t bytes, std::size_t alignment) noexcept;

    void* do_allocate(std::size_t bytes, std::size_t alignment) override;
    void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override;
    [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override;

    std::pmr::memory_resource* upstream_ = nullptr;
    const char* type_ = nullptr;
    bool frees_nothing_ = false;  // threads may be there together to deallocate
    place* place_ = nullptr;
    place own_;
    error_tally* errors_ = nullptr;
    const metadata::resource_record* self_ = nullptr;
    std::atomic<bool> told_{false};
};

}  // namespace pmr_debug::detail
