#pragma once

// The workloads every resource is measured by. They are defined bit for bit (generator, sizes, order), so that a final
// checksum proves that a run, here or in another language, did the same work. One operation is one allocation and one
// deallocation.
//
// All of them go through a std::pmr::memory_resource&, in one compiled copy: every row of a table pays the same virtual
// calls, and the compiler sees no allocation it could remove.

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory_resource>
#include <string_view>
#include <vector>

namespace bench {

enum class workload_id : std::uint8_t { w1, w1b, w2, w3, w4, w5, w6, w2x2 };

struct workload {
    workload_id id;
    std::string_view name;
    std::string_view what;
    std::uint64_t operations;  ///< timed ones, of one thread
    std::uint64_t checksum;    ///< what a right run ends with
    unsigned threads = 1;
    bool processes = false;  ///< each thread is one of a process of its own, which has its own resource
};

inline constexpr std::array<workload, 8> workloads{{
    {workload_id::w1, "W1", "allocate 64 bytes and free them, nothing else live", 100'000, 0x426f81ff7b425000},
    {workload_id::w1b, "W1b", "64 live blocks of 64 bytes, the oldest replaced", 1'000'000, 0x8c5225b8a8dff200},
    {workload_id::w2, "W2", "100 000 live blocks of 1..1024 bytes, a random one replaced", 2'000'000,
     0x65498200d6c5bb04},
    {workload_id::w3, "W3", "1 000 live blocks of 4..256 KiB, a random one replaced", 100'000, 0xc49fc68b8386ad39},
    {workload_id::w4, "W4", "1 000 000 blocks of 16 bytes, freed in the order of allocation", 1'000'000,
     0xcc7fcb02bf1ce880},
    {workload_id::w5, "W5", "1 000 000 blocks of 16 bytes, freed in random order", 1'000'000, 0xcc7fcb02bf1ce880},
    {workload_id::w6, "W6", "W2 in two threads on one resource; the slower thread's time", 2'000'000,
     0xc5400155a3bba310, 2},
    {workload_id::w2x2, "W2x2", "W2 in two processes, each on its own resource; the slower one's time", 2'000'000,
     0x65498200d6c5bb04, 2, true},
}};

[[nodiscard]] constexpr const workload& find(workload_id id) noexcept {
    return workloads[static_cast<std::size_t>(id)];
}

/// A live block of a workload.
struct block {
    unsigned char* p = nullptr;
    std::size_t bytes = 0;
};

/// What a workload needs beside the resource. Made before memory is measured, and touched.
struct scratch {
    explicit scratch(workload_id id);

    std::vector<std::vector<block>> blocks;  ///< one array a thread
    std::vector<std::uint32_t> order;        ///< in which W5 frees
    /// W2x2: where the two processes meet before the timed part; in memory that both see.
    std::atomic<unsigned>* arrived = nullptr;
};

struct outcome {
    double wall_ns = 0;  ///< of the timed part, of the slowest thread
    double cpu_ns = 0;   ///< processor time of the same thread, user and system
    std::uint64_t checksum = 0;
};

/// Effects: runs workload \p id on \p resource, below 20 nested calls. Preconditions: \p space was made for \p id and
/// not used yet.
[[nodiscard]] outcome run(workload_id id, std::pmr::memory_resource& resource, scratch& space);

/// Effects: calls \p body below \p Depth nested calls that the compiler neither inlines nor turns into jumps.
template <unsigned Depth, class Body>
[[gnu::noinline]] void nested(Body& body) {
    if constexpr (Depth == 0) {
        body();
    } else {
        nested<Depth - 1>(body);
    }
    asm volatile("" ::: "memory");  // something to come back to
}

}  // namespace bench
