; Threads that do their shares of a job together.  The caller is thread 0; the others wake each other as a tree.
;
; Between jobs a thread first spins, so that jobs in a row cost no wake-up, then sleeps: as OpenMP's threads do.
; On each 64-byte line after %Team is the semaphore of a thread: line i that of thread i.
%Team = type { ptr, i64, i64, ptr, ptr }               ; the job; how many threads; how many have returned;
                                                       ; the caller's processor; where it might run before
%Job = type { ptr, ptr, ptr, ptr, i64, i64, double }   ; the work; arrays a, b, c; whole blocks, items beyond them; s

declare i32 @sem_init(ptr, i32, i32)
declare i32 @sem_post(ptr)
declare i32 @sem_wait(ptr)
declare i32 @sem_trywait(ptr)
declare i32 @sched_getaffinity(i32, i64, ptr)
declare i32 @sched_setaffinity(i32, i64, ptr)
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
declare double @llvm.vector.reduce.fadd.v4f64(double, <4 x double>)
$declared

define void @prepare(ptr %team, i64 %line) {
  %semaphore = call ptr @semaphore(ptr %team, i64 %line)
  call i32 @sem_init(ptr %semaphore, i32 0, i32 0)
  ret void
}

define void @start(ptr %team, ptr %job) {
  %here.at = getelementptr %Team, ptr %team, i32 0, i32 3
  %before.at = getelementptr %Team, ptr %team, i32 0, i32 4
  %here = load ptr, ptr %here.at
  %before = load ptr, ptr %before.at
  call i32 @sched_getaffinity(i32 0, i64 $mask, ptr %before)
  call i32 @sched_setaffinity(i32 0, i64 $mask, ptr %here)
  store ptr %job, ptr %team
  %returned.at = getelementptr %Team, ptr %team, i32 0, i32 2
  store i64 0, ptr %returned.at
  call i1 @share(ptr %team, i64 0)
  %threads.at = getelementptr %Team, ptr %team, i32 0, i32 1
  %threads = load i64, ptr %threads.at
  br label %spin
spin:
  $pause
  %returned = load atomic i64, ptr %returned.at seq_cst, align 8
  %all = icmp eq i64 %returned, %threads
  br i1 %all, label %done, label %spin
done:
  call i32 @sched_setaffinity(i32 0, i64 $mask, ptr %before)
  ret void
}

define void @worker(ptr %team, i64 %me) {
  %semaphore = call ptr @semaphore(ptr %team, i64 %me)
  br label %idle
idle:
  br label %spin
spin:
  %turn = phi i64 [0, %idle], [%turns, %again]
  %nothing = call i32 @sem_trywait(ptr %semaphore)
  %woken = icmp eq i32 %nothing, 0
  br i1 %woken, label %work, label %again
again:
  $pause
  %turns = add i64 %turn, 1
  %tired = icmp eq i64 %turns, $spins
  br i1 %tired, label %sleep, label %spin
sleep:
  %failed = call i32 @sem_wait(ptr %semaphore)
  %interrupted = icmp ne i32 %failed, 0
  br i1 %interrupted, label %sleep, label %work
work:
  %on = call i1 @share(ptr %team, i64 %me)
  br i1 %on, label %idle, label %end
end:
  ret void
}

; Wake two others and do this thread's share.  False if there is no job any more.
define internal i1 @share(ptr %team, i64 %me) {
  %threads.at = getelementptr %Team, ptr %team, i32 0, i32 1
  %threads = load i64, ptr %threads.at
  %twice = shl i64 %me, 1
  %left = add i64 %twice, 1
  %right = add i64 %twice, 2
  call void @wake(ptr %team, i64 %threads, i64 %left)
  call void @wake(ptr %team, i64 %threads, i64 %right)
  %at = load ptr, ptr %team
  %over = icmp eq ptr %at, null
  br i1 %over, label %end, label %begin
begin:
  %job = load %Job, ptr %at
  %work = extractvalue %Job %job, 0
  %a = extractvalue %Job %job, 1
  %b = extractvalue %Job %job, 2
  %c = extractvalue %Job %job, 3
  %blocks = extractvalue %Job %job, 4
  %beyond = extractvalue %Job %job, 5
  %s = extractvalue %Job %job, 6
  %next = add i64 %me, 1
  %low.all = mul i64 %blocks, %me
  %low = udiv i64 %low.all, %threads
  %high.all = mul i64 %blocks, %next
  %high = udiv i64 %high.all, %threads
  %last = icmp eq i64 %next, %threads
  %tail = select i1 %last, i64 %beyond, i64 0
  call void %work(ptr %a, ptr %b, ptr %c, i64 %low, i64 %high, i64 %tail, double %s, i64 %me)
  $fence ; non-temporal stores are weakly ordered
  br label %end
end:
  %returned = getelementptr %Team, ptr %team, i32 0, i32 2
  atomicrmw add ptr %returned, i64 1 seq_cst
  %on = xor i1 %over, true
  ret i1 %on
}

define internal void @wake(ptr %team, i64 %threads, i64 %who) {
  %there = icmp ult i64 %who, %threads
  br i1 %there, label %yes, label %no
yes:
  %semaphore = call ptr @semaphore(ptr %team, i64 %who)
  call i32 @sem_post(ptr %semaphore)
  br label %no
no:
  ret void
}

define internal ptr @semaphore(ptr %team, i64 %line) {
  %byte = shl i64 %line, 6
  %at = getelementptr i8, ptr %team, i64 %byte
  ret ptr %at
}

define void @idle(ptr %a, ptr %b, ptr %c, i64 %low, i64 %high, i64 %tail, double %s, i64 %me) {
  ret void
}
