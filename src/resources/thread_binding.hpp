#pragma once

// Which thread a resource belongs to, floor 4.

#include "metadata/registry.hpp"
#include "os/thread.hpp"
#include "report/dispatch.hpp"

#include <pmr_debug/policy.hpp>

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace pmr_debug::detail {

/// Zeroed memory is a valid state: bound to nobody.
class thread_binding {
public:
    /// Effects, for single_checked: binds the resource to the calling thread \p me at first use; reports foreign_thread
    ///   in any other thread. \p traced: this use, or none. No bytes and no alignment: not about a request.
    void check(std::uint32_t me, trace_id traced, error_tally& errors, const metadata::resource_record* self,
               const void* p, std::size_t bytes, std::size_t alignment) noexcept {
        if (thread_.load(std::memory_order_relaxed) != me) [[unlikely]] {
            bind_or_report(me, traced, errors, self, p, bytes, alignment);
        } else if (traced != trace_id::none) {
            last_use_.store(traced, std::memory_order_release);
        }
    }

    /// Effects: what \p threads asks for when the calling thread uses the resource, not for a request.
    void enter(threading threads, trace_id traced, error_tally& errors,
               const metadata::resource_record* self) noexcept {
        const std::uint32_t me = os::this_thread().number;
        if (threads == threading::single_checked) {
            check(me, traced, errors, self, nullptr, 0, 0);
        } else if (threads == threading::unchecked) {
            note(me);
        }
    }

    /// Effects, for single_checked: the next use binds the resource anew. Orders nothing: the threads do.
    void release() noexcept { thread_.store(0, std::memory_order_relaxed); }

    /// Effects, for unchecked: notes that \p me uses the resource.
    void note(std::uint32_t me) noexcept { thread_.store(me, std::memory_order_relaxed); }

    /// True if the calling thread used the resource last: the only one that may look into unchecked records.
    [[nodiscard]] bool is_mine() const noexcept {
        return thread_.load(std::memory_order_relaxed) == os::this_thread().number;
    }

private:
    void bind_or_report(std::uint32_t me, trace_id traced, error_tally& errors, const metadata::resource_record* self,
                        const void* p, std::size_t bytes, std::size_t alignment) noexcept;

    std::atomic<std::uint32_t> thread_{0};
    /// A use by the bound thread. Release and acquire, as another thread will read the trace.
    std::atomic<trace_id> last_use_{trace_id::none};
};

}  // namespace pmr_debug::detail
