; What tells caches apart: a working set read over and over, and a walk along pointers.  Shares and arguments are those of a job.

; Blocks `low` to `high` of b, 256 bytes each, as often as the integer at c says; their sum as 32-bit integers, which wrap, in a[me].
;
; Integers, because additions of them keep up with the nearest cache everywhere; 64 bytes at a time, which LLVM splits where vectors
; are shorter; four sums, so that no addition waits for the one before.
define void @passes(ptr %a, ptr %b, ptr %c, i64 %low, i64 %high, i64 %tail, double %s, i64 %me) {
entry:
  %times = load i64, ptr %c
  %from = getelementptr [256 x i8], ptr %b, i64 %low
  %to = getelementptr [256 x i8], ptr %b, i64 %high
  br label %pass
pass:
  %left = phi i64 [%times, %entry], [%fewer, %again]
  %sum.0 = phi <16 x i32> [zeroinitializer, %entry], [%turn.0, %again]
  %sum.1 = phi <16 x i32> [zeroinitializer, %entry], [%turn.1, %again]
  %sum.2 = phi <16 x i32> [zeroinitializer, %entry], [%turn.2, %again]
  %sum.3 = phi <16 x i32> [zeroinitializer, %entry], [%turn.3, %again]
  call void asm sideeffect "", "~{memory}"() ; for all the compiler knows, memory holds something else now
  br label %block
block:
  %at = phi ptr [%from, %pass], [%next, %turn]
  %turn.0 = phi <16 x i32> [%sum.0, %pass], [%new.0, %turn]
  %turn.1 = phi <16 x i32> [%sum.1, %pass], [%new.1, %turn]
  %turn.2 = phi <16 x i32> [%sum.2, %pass], [%new.2, %turn]
  %turn.3 = phi <16 x i32> [%sum.3, %pass], [%new.3, %turn]
  %more = icmp ult ptr %at, %to
  br i1 %more, label %turn, label %again
turn:
  %at.1 = getelementptr i8, ptr %at, i64 64
  %at.2 = getelementptr i8, ptr %at, i64 128
  %at.3 = getelementptr i8, ptr %at, i64 192
  %next = getelementptr i8, ptr %at, i64 256
  %x.0 = load <16 x i32>, ptr %at, align 64
  %x.1 = load <16 x i32>, ptr %at.1, align 64
  %x.2 = load <16 x i32>, ptr %at.2, align 64
  %x.3 = load <16 x i32>, ptr %at.3, align 64
  %new.0 = add <16 x i32> %turn.0, %x.0
  %new.1 = add <16 x i32> %turn.1, %x.1
  %new.2 = add <16 x i32> %turn.2, %x.2
  %new.3 = add <16 x i32> %turn.3, %x.3
  br label %block
again:
  %fewer = sub i64 %left, 1
  %on = icmp ugt i64 %fewer, 0
  br i1 %on, label %pass, label %end
end:
  %first = add <16 x i32> %turn.0, %turn.1
  %second = add <16 x i32> %turn.2, %turn.3
  %both = add <16 x i32> %first, %second
  %total = call i32 @llvm.vector.reduce.add.v16i32(<16 x i32> %both)
  %mine = getelementptr i32, ptr %a, i64 %me
  store i32 %total, ptr %mine
  ret void
}
declare i32 @llvm.vector.reduce.add.v16i32(<16 x i32>)

; From the address in the first word of a on, 16 times as many loads as the integer at c says, each from the address that the one
; before found.  The first word then holds where that led to, and the second has grown by the loads.
define void @chase(ptr %a, ptr %b, ptr %c, i64 %low, i64 %high, i64 %tail, double %s, i64 %me) {
entry:
  %turns = load i64, ptr %c
  %start = load ptr, ptr %a
  br label %turn
turn:
  %left = phi i64 [%turns, %entry], [%fewer, %turn]
  %p.0 = phi ptr [%start, %entry], [%p.16, %turn]
  %p.1 = load ptr, ptr %p.0
  %p.2 = load ptr, ptr %p.1
  %p.3 = load ptr, ptr %p.2
  %p.4 = load ptr, ptr %p.3
  %p.5 = load ptr, ptr %p.4
  %p.6 = load ptr, ptr %p.5
  %p.7 = load ptr, ptr %p.6
  %p.8 = load ptr, ptr %p.7
  %p.9 = load ptr, ptr %p.8
  %p.10 = load ptr, ptr %p.9
  %p.11 = load ptr, ptr %p.10
  %p.12 = load ptr, ptr %p.11
  %p.13 = load ptr, ptr %p.12
  %p.14 = load ptr, ptr %p.13
  %p.15 = load ptr, ptr %p.14
  %p.16 = load ptr, ptr %p.15
  %fewer = sub i64 %left, 1
  %on = icmp ugt i64 %fewer, 0
  br i1 %on, label %turn, label %end
end:
  store ptr %p.16, ptr %a
  %count.at = getelementptr i64, ptr %a, i64 1
  %before = load i64, ptr %count.at
  %loads = shl i64 %turns, 4
  %count = add i64 %before, %loads
  store i64 %count, ptr %count.at
  ret void
}
